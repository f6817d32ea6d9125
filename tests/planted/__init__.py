"""Bugs planted on purpose, each of which the tests must find. `make planted` plants them all."""
