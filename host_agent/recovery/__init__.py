"""A checkpoint becomes a disk, a disk becomes a running machine."""
