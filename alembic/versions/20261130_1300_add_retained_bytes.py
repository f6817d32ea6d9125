"""What journals take in the store: of each group, and in a tenant's usage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "20261130_1300"
down_revision = "20261130_1010"

_COLUMN = "retained_bytes"


def upgrade() -> None:
    op.add_column("vpg_statuses", sa.Column(_COLUMN, sa.BigInteger))
    zero = sa.text("0")
    op.add_column(
        "usage_hours", sa.Column(_COLUMN, sa.BigInteger, nullable=False, server_default=zero)
    )


def downgrade() -> None:
    op.drop_column("usage_hours", _COLUMN)
    op.drop_column("vpg_statuses", _COLUMN)
