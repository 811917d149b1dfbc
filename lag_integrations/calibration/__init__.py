"""Measures what a model does with logs as KV before it is trusted with them."""
