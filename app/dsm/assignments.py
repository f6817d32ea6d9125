"""Who manages which tenant's site: taken by one conditional update that raises the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import SystemSession
from app.models import Command, Lease, ManagerAssignment

#: Hosts that are at no site of the tenant's have a manager as well.
NO_SITE = UUID(int=0)
#: An epoch above this is not believed: a host that claims it would leave no room to rise.
EPOCH_MAX = 1 << 48
_A = ManagerAssignment


@dataclass(frozen=True)
class Place:
    """What has one manager: a tenant's site."""

    tenant_id: UUID
    site_id: UUID


@dataclass(frozen=True)
class Route:
    """Who manages a place now; `process` None: nobody."""

    place: Place
    process: UUID | None
    epoch: int
    address: str


def fair_share(places: int, processes: int) -> int:
    """How many places one of these processes has at most."""
    return -(-places // max(1, processes))


def _is_alive(process: object) -> ColumnElement[bool]:
    return exists().where(Lease.id == process, Lease.expires_at > func.clock_timestamp())


async def ensure_place(session: SystemSession, place: Place) -> None:
    """From now on the place wants a manager. May be repeated."""
    await session.orm.execute(
        insert(_A)
        .values(
            tenant_id=place.tenant_id,
            site_id=place.site_id,
            process=None,
            epoch=0,
            changed_at=func.clock_timestamp(),
        )
        .on_conflict_do_nothing()
    )


async def ensure_commanded(session: SystemSession) -> None:
    """Places that have a command waiting and were never managed want a manager."""
    managed = exists().where(_A.tenant_id == Command.tenant_id, _A.site_id == Command.site_id)
    waiting = (
        select(Command.tenant_id, Command.site_id)
        .where(Command.done_at.is_(None), ~managed)
        .distinct()
        .limit(100)
    )
    for tenant_id, site_id in (await session.orm.execute(waiting)).all():
        await ensure_place(session, Place(tenant_id, site_id))


async def wanted_more(session: SystemSession, process: UUID) -> int:
    """How many places this process should take; negative: give so many up."""
    places = select(func.count()).select_from(_A).scalar_subquery()
    own = select(func.count()).where(_A.process == process).scalar_subquery()
    is_live = Lease.expires_at > func.clock_timestamp()
    alive = select(func.count()).where(is_live).scalar_subquery()
    row = (await session.orm.execute(select(places, own, alive))).one()
    return fair_share(row[0], row[2]) - int(row[1])


async def take(session: SystemSession, process: UUID, count: int) -> list[Route]:
    """Become the manager of up to so many places that have none, if our lease stands."""
    free = (
        select(_A.tenant_id, _A.site_id, _A.epoch)
        .where(or_(_A.process.is_(None), ~_is_alive(_A.process)))
        .limit(count)
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    mine = and_(
        _A.tenant_id == free.c.tenant_id, _A.site_id == free.c.site_id, _A.epoch == free.c.epoch
    )
    taken = await session.orm.execute(
        update(_A)
        .where(mine, _is_alive(process))
        .values(process=process, epoch=_A.epoch + 1, changed_at=func.clock_timestamp())
        .returning(_A.tenant_id, _A.site_id, _A.epoch)
    )
    return [Route(Place(row[0], row[1]), process, row[2], "") for row in taken]


async def raise_epoch(session: SystemSession, route: Route, above: int) -> int | None:
    """Our new epoch, above what a host has seen (the database was rebuilt); None: not ours."""
    if above >= EPOCH_MAX:
        return None
    raised = await session.orm.execute(
        update(_A)
        .where(_matches(route.place), _A.process == route.process, _A.epoch == route.epoch)
        .values(epoch=above + 1, changed_at=func.clock_timestamp())
        .returning(_A.epoch)
    )
    return raised.scalar_one_or_none()


async def give_up(session: SystemSession, process: UUID, places: list[Place] | None = None) -> None:
    """Manage these no longer, or none at all."""
    chosen = [] if places is None else [_in(places)]
    await session.orm.execute(
        update(_A)
        .where(_A.process == process, *chosen)
        .values(process=None, changed_at=func.clock_timestamp())
    )


async def changed_routes(session: SystemSession, seconds: float) -> list[Route]:
    """Of all places whose manager changed in the last seconds."""
    since = func.clock_timestamp() - timedelta(seconds=seconds)
    return await _routes(session, _selected().where(_A.changed_at > since))


async def routes_of(session: SystemSession, places: list[Place]) -> list[Route]:
    """Of these places, those that want a manager."""
    return await _routes(session, _selected().where(_in(places)))


def _selected() -> Select[UUID, UUID, UUID, int, str]:
    live = and_(Lease.id == _A.process, Lease.expires_at > func.clock_timestamp())
    chosen = select(_A.tenant_id, _A.site_id, Lease.id, _A.epoch, Lease.address)
    return chosen.select_from(_A).outerjoin(Lease, live)


async def _routes(session: SystemSession, query: Select[UUID, UUID, UUID, int, str]) -> list[Route]:
    rows = (await session.orm.execute(query)).all()
    return [Route(Place(row[0], row[1]), row[2], row[3], row[4] or "") for row in rows]


def _matches(place: Place) -> ColumnElement[bool]:
    return and_(_A.tenant_id == place.tenant_id, _A.site_id == place.site_id)


def _in(places: list[Place]) -> ColumnElement[bool]:
    return tuple_(_A.tenant_id, _A.site_id).in_([(p.tenant_id, p.site_id) for p in places])
