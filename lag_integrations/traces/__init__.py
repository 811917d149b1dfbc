"""Traces of agent runs: messages, outcome, sources, search keys. Knows no torch, no framework."""
