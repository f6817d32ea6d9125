"""The outbox and jobs."""

from __future__ import annotations

revision = "20261122_2260"
down_revision = "20261122_2250"


def upgrade() -> None:
    """Filled by the change that needs it."""


def downgrade() -> None:
    """Undo it."""
