"""The deployment's root, a client-only intermediate for each tenant, and what they sign."""
