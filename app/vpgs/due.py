"""What waited before it destroys, and whose time has come."""

from __future__ import annotations

from datetime import datetime

from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.keys.service import destroy_group_key
from app.kit.ids import Kind, parse
from app.kit.problems import Problem
from app.models import Operation, Vpg
from app.models.base import key_of
from app.operations.service import fail, find_due, succeed
from app.vpgs.planning import DESTROY, SHORTEN
from app.vpgs.state import CHANGEABLE, Lifecycle


async def run_due(session: TenantSession, now: datetime) -> list[Happening]:
    """Do the tenant's destroying acts that are due; events for the transaction's ledger. What is
    no longer possible fails with its reason.
    """
    happenings: list[Happening] = []
    for operation in await find_due(session, (SHORTEN, DESTROY), now):
        key = key_of(session.tenant_id, parse(Kind.VPG, operation.subject))
        vpg = await session.orm.get_one(Vpg, key, with_for_update=True)
        act = _shorten if operation.kind == SHORTEN else _destroy
        happenings += await act(session, operation, vpg, now)
    return happenings


async def _shorten(
    session: TenantSession, operation: Operation, vpg: Vpg, now: datetime
) -> list[Happening]:
    if vpg.lifecycle not in CHANGEABLE:
        gone = Problem("illegal_transition", "The group was removed meanwhile.")
        return [await fail(session, operation.id, now, gone)]
    vpg.settings = {**vpg.settings, **operation.input["settings"]}
    vpg.version += 1
    ended = await succeed(session, operation.id, now, {"history": "shortened"})
    return [ended, Happening("vpgs.changed", operation.subject, {"by": "delayed operation"})]


async def _destroy(
    session: TenantSession, operation: Operation, vpg: Vpg, now: datetime
) -> list[Happening]:
    if vpg.lifecycle != Lifecycle.REMOVED:
        alive = Problem("illegal_transition", "The group is not removed.")
        return [await fail(session, operation.id, now, alive)]
    happened = await destroy_group_key(session, vpg.id, now)
    told = "The group's key is destroyed: nobody can read its journal any more."
    ended = await succeed(session, operation.id, now, {"journal": "unreadable", "says": told})
    return [ended, *happened]
