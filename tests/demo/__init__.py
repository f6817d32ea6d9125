"""The demonstration itself, and the variants in which it must fail."""
