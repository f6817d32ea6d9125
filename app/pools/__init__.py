"""The provider's own hosts, and the pools as which tenants see them."""
