"""What surrounds the product: scripts, units, locks, the demonstration."""
