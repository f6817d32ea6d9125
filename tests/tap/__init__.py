"""Black-box tests of the tap: what FORMAT.md and the NBD protocol promise, seen from outside."""
