"""Events, the audit log, and the ledger row that orders both."""
