"""What every route shares: authentication, one transaction, idempotency, problems, pages."""
