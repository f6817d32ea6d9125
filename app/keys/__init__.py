"""Keys: a key service that alone opens them, and everybody else with wrapped ones."""
