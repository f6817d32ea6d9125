"""Checkpoints: automatic ones packed by ten minutes, the others as rows; both as one timeline."""
