"""The one description of the bytes that cross a process or outlive one. A leaf: no I/O."""
