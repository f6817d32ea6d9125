"""The control plane: tenants, groups, checkpoints and recoveries. Never touches disk data."""
