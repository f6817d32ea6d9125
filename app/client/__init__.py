"""The typed client of the API; the command line is its first user."""
