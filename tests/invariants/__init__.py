"""Which tests hold which invariant, read from their marks without running anything."""
