"""Real processes, real disks, real file systems: what only shows when everything runs together."""
