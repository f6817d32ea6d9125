"""Places with hypervisors."""
