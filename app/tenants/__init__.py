"""Customer organisations: made by the provider, then closed to it."""
