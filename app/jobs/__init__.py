"""Jobs: what has to be done regularly for tenants and groups, and whose turn it is."""
