"""Measurements: accuracy with and without logs, and what injecting costs."""
