"""Hosts: joined by a token that works once, renewed by their old key, revoked at once."""
