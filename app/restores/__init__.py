"""Restores: a ticket for a host, and the operation in which it brings a moment back."""
