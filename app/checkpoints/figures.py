"""Figures of a group's checkpoints for those who plan."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select

from app.database.sessions import TenantSession
from app.models import CheckpointPack


async def count_before(session: TenantSession, vpg_id: UUID, moment: datetime) -> int:
    """How many automatic checkpoints lie before a moment, to ten minutes; one query."""
    found = await session.orm.scalar(
        select(func.coalesce(func.sum(CheckpointPack.complete), 0)).where(
            CheckpointPack.tenant_id == session.tenant_id,
            CheckpointPack.vpg_id == vpg_id,
            CheckpointPack.begins_at < moment,
        )
    )
    return int(found or 0)
