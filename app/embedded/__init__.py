"""Real servers for one machine, started from wheels."""
