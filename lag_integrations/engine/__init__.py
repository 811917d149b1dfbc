"""The wrapped model: its chat template, its encoding of traces, its generation."""
