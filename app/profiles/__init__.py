"""Service profiles: settings with a name, from which groups are made."""
