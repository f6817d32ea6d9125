"""The provider's staff in a tenant's scope: with a reason, for a while, in the tenant's sight."""
