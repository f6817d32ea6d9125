"""Domain-free helpers: identifiers, problems, sealing, cursors, time."""
