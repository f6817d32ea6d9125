"""Ingest as a real process: real TLS, a real store, and agents that do right or wrong."""
