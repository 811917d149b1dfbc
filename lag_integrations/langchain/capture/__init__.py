"""Capture LangChain runs as traces."""
