"""Wrapped keys of groups."""

from __future__ import annotations

revision = "20261122_2230"
down_revision = "20261122_2220"


def upgrade() -> None:
    """Filled by the change that needs it."""


def downgrade() -> None:
    """Undo it."""
