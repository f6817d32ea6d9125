"""Calls to URLs that a tenant chose: only to public addresses, only to what was checked."""
