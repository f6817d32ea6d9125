"""Receives streams, writes segments, acknowledges. One process a tenant, no data key."""
