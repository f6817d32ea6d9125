"""Walls between callers: equal in time and in queries, and never open by oversight."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import app.database.sessions as sessions
from app.database.sessions import Database
from app.http.routing import check_routers, provider_router, tenant_router
from app.kit.ids import Kind, parse
from tests.app.service import Service
from tests.app.test_isolation import (
    BODIES,
    MACHINES,
    PROVIDERS,
    World,
    absent,
    ask,
    make_world,
    routes_of,
)
from tests.app.test_query_counts import counted

pytestmark = pytest.mark.anyio
#: Fields that the service sets, and one that nobody has.
_NOT_THEIRS = ("tenant_id", "owner", "state", "epoch", "version", "created_at", "c4n4ry")


@pytest.fixture
async def world(service: Service) -> World:
    return await make_world(service)


@pytest.mark.invariant("I9")
async def test_a_foreign_object_takes_as_many_queries_as_an_absent_one(world: World) -> None:
    """CP1, for every route with an identifier in its path."""
    routes = [one for one in routes_of(world.service) if "{" in one[1]]
    checked = 0
    for route in routes:
        if route[1].startswith("/v1/provider/") or " ".join(route) in MACHINES:
            continue
        counts = []
        for ids in (world.other_ids, absent(world.own_ids)):
            with counted() as seen:
                answer = await ask(world.own, route, ids)
            assert answer.status_code == 404, route
            counts.append(len(seen))
        assert counts[0] == counts[1], route
        checked += 1
    assert checked > 30


@pytest.mark.invariant("I9")
async def test_a_foreign_object_takes_as_long_as_an_absent_one(world: World) -> None:
    """CP1: medians of 200 samples, taken in turn."""
    path = "/v1/sites/{site_id}"
    times: dict[str, list[float]] = {"foreign": [], "absent": []}
    ids = {"foreign": world.other_ids, "absent": absent(world.own_ids)}
    for _ in range(200):
        for name, found in times.items():
            began = time.perf_counter()
            await ask(world.own, ("GET", path), ids[name])
            found.append(time.perf_counter() - began)
    foreign, nobody = (statistics.median(found) for found in times.values())
    assert 0.8 < foreign / nobody < 1.25, (foreign, nobody)


def test_a_route_that_names_no_privilege_does_not_start() -> None:
    """CP2: of a tenant, of the provider, and of a router that is neither."""
    for router in (tenant_router("x"), provider_router("x"), APIRouter()):
        router.add_api_route("/open", lambda: None)
        with pytest.raises(RuntimeError, match="names no privilege"):
            check_routers([router])


async def test_no_body_takes_a_field_that_is_not_its_own(world: World) -> None:
    """CP3: mass assignment, for each body and each field that the service sets itself."""
    probes = 0
    for route in routes_of(world.service):
        body = BODIES[" ".join(route)]
        if body is None or " ".join(route) in MACHINES:
            continue
        is_provider = route[1].startswith("/v1/provider/")
        caller = world.service.provider if is_provider else world.own
        for field in set(_NOT_THEIRS) - set(body):
            path = route[1].format(**{**PROVIDERS, **world.own_ids})
            sent: dict[str, Any] = {**body, field: "x"}
            answer = await caller.call(route[0], path, json=sent, headers={"if-match": "*"})
            assert answer.status_code == 422, (route, field, answer.text)
            errors = answer.json()["errors"]
            assert f"body.{field}" in [one["field"] for one in errors], (route, field)
            probes += 1
    assert probes > 100


@pytest.mark.invariant("I9")
async def test_two_tenants_on_one_connection_stay_apart(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CP5: a pool of one connection, a thousand transactions in turn, some undone, some failed."""
    names, ids = ("own", "other"), []
    for name in names:
        tenant = await service.make_tenant()
        await tenant.post("/v1/sites", {"name": name, "territory": "CH"})
        ids.append(parse(Kind.TENANT, (await tenant.get("/v1/tenant")).json()["id"]))
    monkeypatch.setattr(sessions, "_POOL_SIZE", 1)
    monkeypatch.setattr(sessions, "_POOL_OVERFLOW", 0)
    database = Database(service.url)
    backends = set()
    try:
        for number in range(1000):
            async with database.tenant(ids[number % 2]) as session:
                seen = (await session.orm.scalars(text("SELECT name FROM sites"))).all()
                assert seen == [names[number % 2]]
                backends.add(await session.orm.scalar(text("SELECT pg_backend_pid()")))
                if number % 3 == 0:
                    await session.commit()
                if number % 7 == 0:
                    with pytest.raises(DBAPIError):
                        await session.orm.execute(text("SELECT 1/0"))
        assert len(backends) == 1, "it was one connection all the time"
        async with database._app.connect() as connection:
            with pytest.raises(DBAPIError):  # nobody's scope is left in it
                await connection.execute(text("SELECT name FROM sites"))
    finally:
        await database.close()
