"""Documents that change: what is answered then, with a memory of what was answered before."""
