"""Sentinels: what is read of every gradient at every step, whatever is thinned."""
