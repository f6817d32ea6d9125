"""Data nodes: they receive streams and serve restores, by records that let them work alone."""
