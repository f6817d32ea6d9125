"""Migrations: up, down, on data of two tenants, while somebody holds a lock, and broken off."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine, text

from app.database.migrate import UpgradeInterrupted, downgrade, upgrade
from app.database.roles import APP, MIGRATE
from app.database.schema import SCRIPTS, newest_revision
from tests.app.service import Service, running_service
from tests.app.test_isolation import make_world
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
REVISIONS = [one.revision for one in ScriptDirectory(str(SCRIPTS)).walk_revisions()][::-1]
_FIRST = REVISIONS[0]
#: People came with a later revision than the table that bears their name.
_KEPT = ("tenants", "sites", "api_keys", "events", "audit_entries")


def ask(url: URL, statement: str) -> list[Any]:
    """As the superuser."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        done = connection.execute(text(statement))
        found = [tuple(row) for row in done.all()] if done.returns_rows else []
    engine.dispose()
    return found


def rows_of(url: URL) -> dict[str, list[Any]]:
    """What the first revision's tables hold of both tenants, by their keys."""
    found = {}
    for table in _KEPT:
        tenant = "id" if table == "tenants" else "tenant_id"
        key = "place" if table in ("events", "audit_entries") else "id"
        found[table] = ask(url, f"SELECT {tenant}, {key} FROM {table} ORDER BY 1, 2")
    return found


def revision(url: URL) -> str:
    return str(ask(url, "SELECT version_num FROM alembic_version")[0][0])


@pytest.mark.timeout(300)
async def test_down_to_the_first_and_up_again_keeps_what_both_tenants_had(
    cluster: Cluster,
) -> None:
    with cluster.database() as url:
        async with running_service(url) as service:
            world = await make_world(service)
            callers = (world.own, world.other)
            sites = [(await one.get("/v1/sites")).json()["items"] for one in callers]
            assert all(sites)
            await service.tools.database.close()
            before = rows_of(url)
            assert all(len({row[0] for row in rows}) >= 2 for rows in before.values())
            for wanted in reversed(REVISIONS[:-1]):  # one step at a time, each with data
                downgrade(url, wanted)
                assert revision(url) == wanted
            assert rows_of(url) == before
            upgrade(url)
            assert revision(url) == newest_revision()
            assert rows_of(url) == before
            for caller, had in zip(callers, sites, strict=True):
                kept = (await caller.get("/v1/sites")).json()["items"]
                assert [one["id"] for one in kept] == [one["id"] for one in had]
                made = await caller.post("/v1/vpgs", {"name": "after"})
                assert made.status_code == 201, made.text
        bare = ask(
            url,
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND NOT relforcerowsecurity "
            "AND relnamespace = 'public'::regnamespace",
        )
        assert {row[0] for row in bare} == {"alembic_version", "provider_keys"}


async def test_a_data_migration_reaches_every_tenant_s_rows(service: Service) -> None:
    """The control: bound by row-level security it would change nothing, and say nothing."""
    await make_world(service)
    rows = ask(service.url, "SELECT tenant_id FROM sites")
    assert len(set(rows)) >= 2
    for role, changed in ((MIGRATE, len(rows)), (APP, 0)):
        engine = create_engine(service.url.set(username=role))
        with engine.begin() as connection:
            if role == APP:
                nobody = "SET LOCAL holdfast.tenant = '00000000-0000-0000-0000-000000000000'"
                connection.execute(text(nobody))
            done = connection.execute(text("UPDATE sites SET version = version + 1"))
            assert done.rowcount == changed, role
        engine.dispose()


def test_whoever_holds_a_lock_is_not_waited_for_and_nothing_is_half_done(
    cluster: Cluster,
) -> None:
    with cluster.database() as url:
        engine = create_engine(url)
        with engine.connect() as holder:
            holder.execute(text("LOCK TABLE sites IN ACCESS SHARE MODE"))
            began = time.monotonic()
            with pytest.raises(UpgradeInterrupted) as refused:
                downgrade(url, "base")
            assert time.monotonic() - began < 30
            assert refused.value.retryable
            assert "lock timeout" in refused.value.message
        engine.dispose()
        assert revision(url) == newest_revision()
        assert ask(url, "SELECT count(*) FROM jobs") == [(0,)], "what came before was undone"
        downgrade(url, "base")
        upgrade(url)
        assert revision(url) == newest_revision()


def test_a_migration_that_is_broken_off_leaves_the_schema_as_it_was(cluster: Cluster) -> None:
    with cluster.empty_database() as url:
        upgrade(url, _FIRST)
        ended: list[BaseException] = []

        def run() -> None:
            try:
                upgrade(url)
            except UpgradeInterrupted as error:
                ended.append(error)

        engine = create_engine(url)
        with engine.connect() as holder:
            # The second migration waits here, with its first statements done.
            holder.execute(text("LOCK TABLE tenants IN ACCESS EXCLUSIVE MODE"))
            upgrading = threading.Thread(target=run)
            upgrading.start()
            stop = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                f"datname = '{url.database}' AND usename = '{MIGRATE}' AND wait_event_type = 'Lock'"
            )
            ends = time.monotonic() + 30
            while not ask(url, stop):
                assert time.monotonic() < ends
                time.sleep(0.01)
            upgrading.join(60)
        engine.dispose()
        assert ended
        assert revision(url) == _FIRST
        upgrade(url)
        assert revision(url) == newest_revision()
