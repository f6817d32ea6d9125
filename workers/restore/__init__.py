"""Brings a point in time back: as raw image files, or served over NBD at once."""
