"""Relevance: the probability that a log fits a query, calibrated for each embedder."""
