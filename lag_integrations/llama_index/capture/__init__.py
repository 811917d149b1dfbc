"""Runs of LlamaIndex become traces."""
