"""A tenant's hosts with how they are: by the last that their manager entered."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.dsm.health import Health
from app.hosts.schemas import HostDetail, HostHealth
from app.hosts.service import show_host
from app.models import Host, HostStatus
from app.models.hosts import HostState

#: A manager enters each host that it hears at least once a minute.
_SAID_SECONDS_MAX = 150.0


def shown_hosts(tenant_id: UUID) -> Select[Host, HostStatus | None]:
    """The tenant's hosts, each with what is known of it."""
    of_host = and_(HostStatus.tenant_id == Host.tenant_id, HostStatus.host_id == Host.id)
    hosts = select(Host, HostStatus).outerjoin(HostStatus, of_host)
    return hosts.where(Host.tenant_id == tenant_id)


async def status_of(orm: AsyncSession, host: Host) -> HostStatus | None:
    """What is known of one host."""
    return await orm.get(HostStatus, {"tenant_id": host.tenant_id, "host_id": host.id})


def health_of(host: Host, status: HostStatus | None, now: datetime) -> HostHealth:
    """What its manager said last, unless that is too old: then nobody knows."""
    if host.state != HostState.ACTIVE or status is None:
        return HostHealth.UNKNOWN
    is_old = now - status.seen_at > timedelta(seconds=_SAID_SECONDS_MAX)
    if is_old and status.health != Health.DOWN:
        return HostHealth.UNKNOWN
    return HostHealth(status.health)


def show_detail(host: Host, status: HostStatus | None, now: datetime) -> HostDetail:
    """As the API shows it."""
    health = health_of(host, status, now)
    known = None if health == HostHealth.UNKNOWN else status
    return HostDetail(
        **show_host(host).model_dump(),
        health=health,
        health_reason=known.reason if known else None,
        health_since=known.changed_at if known else None,
        seen_at=status.seen_at if status else None,
    )
