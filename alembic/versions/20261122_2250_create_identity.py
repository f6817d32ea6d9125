"""Identity providers, entries of the provider, roles over groups and sites."""

from __future__ import annotations

revision = "20261122_2250"
down_revision = "20261122_2240"


def upgrade() -> None:
    """Filled by the change that needs it."""


def downgrade() -> None:
    """Undo it."""
