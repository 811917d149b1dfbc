"""All tensor work: positions, segments, selection, encoding, splicing, files."""
