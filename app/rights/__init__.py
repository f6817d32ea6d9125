"""What a tenant may use: pools and hosts of the provider, and territories for its data."""
