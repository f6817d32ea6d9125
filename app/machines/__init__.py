"""Machines and disks, as hosts report them; labels that people put on them."""
