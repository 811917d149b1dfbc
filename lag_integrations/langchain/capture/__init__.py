"""Runs of LangChain become traces."""
