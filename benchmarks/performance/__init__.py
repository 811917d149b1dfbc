"""``make bench``: what this package costs, against what people would use instead.

Machines differ, and one machine differs from hour to hour. So the methods are interleaved within
one run. Figures are medians [quartiles] of per-round time ratios.
"""
