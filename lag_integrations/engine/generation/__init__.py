"""From logits to text: sampling, constraints, detokenization, and the decode loops."""
