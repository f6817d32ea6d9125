"""Who may act, who takes over, and that never two of them do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import URL, create_engine, text

from app.database.sessions import Database
from app.dsm import assignments
from app.dsm.assignments import NO_SITE, Place, Route, fair_share
from app.dsm.lease import LeaseKeeper, LeaseTimes, Permission
from tests.app.service import running_service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
#: So long that only a test ends it.
LONG = LeaseTimes(renew=100, act=200, gone=300)


def test_permission_counts_from_before_the_renewal_was_sent() -> None:
    permission = Permission(act_seconds=6)
    assert not permission.holds(0)
    permission.renewed(sent_at=10)
    assert permission.holds(15.9)
    assert not permission.holds(16)
    permission.renewed(sent_at=16)
    permission.end()
    assert not permission.holds(16.1)


@pytest.mark.parametrize("times", [(2, 8, 8), (6, 2, 8), (0, 6, 8), (2, 6, 5)])
def test_times_that_would_let_two_act_are_refused(times: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="renewed before"):
        LeaseTimes(*times)


@pytest.mark.parametrize(
    ("places", "processes", "share"), [(0, 1, 0), (7, 2, 4), (1, 3, 1), (3, 0, 3)]
)
def test_places_are_shared_fairly(places: int, processes: int, share: int) -> None:
    assert fair_share(places, processes) == share


@pytest.fixture
async def url(cluster: Cluster) -> AsyncIterator[URL]:
    with cluster.database() as made:
        yield made


@pytest.fixture
async def database(url: URL) -> AsyncIterator[Database]:
    made = Database(url)
    yield made
    await made.close()


async def make_places(url: URL, count: int) -> list[Place]:
    """Places of new tenants."""
    async with running_service(url) as service:
        for _ in range(count):
            await service.make_tenant()
        async with service.tools.database.provider() as session:
            rows = (await session.orm.execute(text("SELECT id FROM tenants"))).scalars().all()
    return [Place(tenant_id, NO_SITE) for tenant_id in rows]


async def take(database: Database, keeper: LeaseKeeper, count: int = 100) -> list[Route]:
    """What a process takes in one go."""
    async with database.system() as session:
        taken = await assignments.take(session, keeper.id, count)
        await session.commit()
    return taken


async def ensure(database: Database, places: list[Place]) -> None:
    """They want a manager."""
    async with database.system() as session:
        for place in places:
            await assignments.ensure_place(session, place)
        await session.commit()


def end_lease(url: URL, process: UUID) -> None:
    """As if so much time had passed."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE leases SET expires_at = now() - interval '1 second' WHERE id = :id"),
            {"id": process},
        )
    engine.dispose()


async def test_of_many_processes_one_takes_a_place_and_each_taking_raises_its_epoch(
    url: URL, database: Database
) -> None:
    places = await make_places(url, 2)
    await ensure(database, places * 2)
    keepers = [LeaseKeeper(database, f"h:{n}", LONG) for n in range(4)]
    for keeper in keepers:
        await keeper.begin()
    epochs: dict[Place, int] = dict.fromkeys(places, 0)
    for _ in range(8):
        found = await asyncio.gather(*(take(database, keeper) for keeper in keepers))
        taken = [route for routes in found for route in routes]
        assert sorted(route.place.tenant_id for route in taken) == sorted(
            place.tenant_id for place in places
        )
        for route in taken:
            assert route.epoch == epochs[route.place] + 1
            epochs[route.place] = route.epoch
        for route in taken:
            assert route.process is not None
            async with database.system() as session:
                await assignments.give_up(session, route.process, [route.place])
                await session.commit()


async def test_a_lease_that_ended_frees_its_places_and_its_process_takes_none(
    url: URL, database: Database
) -> None:
    places = await make_places(url, 1)
    await ensure(database, places)
    old, new = LeaseKeeper(database, "old:1", LONG), LeaseKeeper(database, "new:1", LONG)
    await old.begin()
    await new.begin()
    assert [route.epoch for route in await take(database, old)] == [1]
    assert await take(database, new) == []
    lost = []
    old.on_lost = lambda: lost.append(old.may_act())
    before = old.id
    end_lease(url, old.id)
    assert await take(database, old) == []
    assert [route.epoch for route in await take(database, new)] == [2]
    await old.renew()
    assert lost == [False]
    assert old.id != before
    assert old.may_act()
    async with database.system() as session:
        (route,) = await assignments.routes_of(session, places)
        assert (route.process, route.address, route.epoch) == (new.id, "new:1", 2)
        assert await assignments.changed_routes(session, 60) == [route]
    await new.release()
    assert not new.may_act()
    assert [route.epoch for route in await take(database, old)] == [3]


async def test_without_a_lease_nothing_is_taken(url: URL, database: Database) -> None:
    await ensure(database, await make_places(url, 1))
    assert await take(database, LeaseKeeper(database, "a:1", LONG)) == []


async def test_an_epoch_rises_above_what_a_host_has_seen(url: URL, database: Database) -> None:
    places = await make_places(url, 1)
    await ensure(database, places)
    keeper = LeaseKeeper(database, "a:1", LONG)
    await keeper.begin()
    (route,) = await take(database, keeper)
    async with database.system() as session:
        assert await assignments.raise_epoch(session, route, 1 << 48) is None
        assert await assignments.raise_epoch(session, route, 37) == 38
        assert await assignments.raise_epoch(session, route, 40) is None, "of an older epoch"
        stranger = Route(route.place, uuid4(), 38, "")
        assert await assignments.raise_epoch(session, stranger, 40) is None


async def test_a_process_that_cannot_renew_stops_acting_by_itself(database: Database) -> None:
    keeper = LeaseKeeper(database, "a:1", LeaseTimes(renew=0.1, act=0.3, gone=60))
    await keeper.begin()
    assert keeper.may_act()
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(1)
    assert keeper.may_act()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asyncio.sleep(0.4)
    assert not keeper.may_act()


async def test_how_many_places_a_process_should_take(url: URL, database: Database) -> None:
    places = await make_places(url, 5)
    await ensure(database, places)
    first, second = (LeaseKeeper(database, "a:1", LONG) for _ in range(2))
    await first.begin()
    async with database.system() as session:
        assert await assignments.wanted_more(session, first.id) == 5
    await take(database, first)
    await second.begin()
    async with database.system() as session:
        assert await assignments.wanted_more(session, first.id) == -2
        assert await assignments.wanted_more(session, second.id) == 3
