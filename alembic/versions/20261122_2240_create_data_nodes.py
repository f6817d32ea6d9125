"""Data nodes and their records."""

from __future__ import annotations

revision = "20261122_2240"
down_revision = "20261122_2230"


def upgrade() -> None:
    """Filled by the change that needs it."""


def downgrade() -> None:
    """Undo it."""
