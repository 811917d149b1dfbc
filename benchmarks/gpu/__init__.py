"""``make bench-gpu``: whether this package is right on a GPU, and how fast, in a few minutes.

It needs no model and no data: weights are random, of known models' shapes. What is measured is
time, which does not depend on them.
"""
