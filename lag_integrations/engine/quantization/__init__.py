"""Weights of a model in fewer bits, for CPUs: decoding reads every weight once a token."""
