"""The long lanes: what `make soak` runs, and its summary by invariant."""
