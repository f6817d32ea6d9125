"""Leases, assignments, commands."""

from __future__ import annotations

revision = "20261122_2220"
down_revision = "20261122_2210"


def upgrade() -> None:
    """Filled by the change that needs it."""


def downgrade() -> None:
    """Undo it."""
