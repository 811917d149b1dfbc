"""``make bench``: what this package costs, against what people would use instead.

Machines differ, and one machine differs from hour to hour. So what is compared takes turns within
one run, and every figure is the median, with quartiles, of ratios of two times of the same round.
"""
