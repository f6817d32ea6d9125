"""What tenants used, by the hour."""
