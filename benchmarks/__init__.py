"""Measurements of the package, for its developers: ``python -m benchmarks.NAME``."""
