"""The journal at rest: reading it, and the map from a point in time to bytes."""
