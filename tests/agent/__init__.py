"""The agent: its configuration, its sockets, its commands, and whole hosts under faults."""
