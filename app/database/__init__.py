"""Roles, scoped sessions, migrations: the one way to PostgreSQL."""
