"""A tenant's hosts are told anew by which doors their streams go in."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.dsm.commands import CommandKind, request_command
from app.dsm.commands import Wanted as Command
from app.models import Host
from app.models.hosts import HostState
from app.vpgs.assigning import raise_assignments


async def tell_hosts(session: TenantSession, now: datetime) -> None:
    """Raise what each host of the tenant is told, and have its manager send it."""
    found = await session.orm.scalars(
        select(Host)
        .where(Host.tenant_id == session.tenant_id, Host.state == HostState.ACTIVE)
        .order_by(Host.id)
    )
    hosts = [host.id for host in found]
    await raise_assignments(session, hosts, now)
    for host_id in hosts:
        await request_command(session, Command(CommandKind.ASSIGN, host_id, host_id, now))
