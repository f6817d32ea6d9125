"""Server-sent events: nothing missed, nothing repeated, and they end with their credential."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import create_engine, text

import app.events.stream as stream_module
from app.database.roles import MIGRATE
from app.events.hub import EventHub
from app.events.stream import Reading, stream_events
from app.identity.tokens import parse_token
from tests.app.service import Caller, Service

pytestmark = pytest.mark.anyio
_SECONDS_MAX = 60.0


def events_in(body: str) -> list[dict[str, Any]]:
    """What the stream's messages carry; their ids are their places."""
    found = []
    for message in body.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in message.split("\n") if line and line[0] != ":"
        )
        if fields:
            document = json.loads(fields["data"])
            assert int(fields["id"]) == document["place"]
            assert fields["event"] == document["kind"]
            found.append(document)
    return found


async def make_sites(tenant: Caller, count: int) -> None:
    for number in range(count):
        made = await tenant.post("/v1/sites", {"name": f"site {number}", "territory": "CH"})
        assert made.status_code == 201


async def followed(tenant: Caller, **headers: str) -> list[dict[str, Any]]:
    path = "/v1/events:stream"
    answer = await tenant.get(path, params={"seconds": 1, "after": 0}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_in(answer.text)


async def test_it_goes_on_from_any_place(service: Service) -> None:
    tenant = await service.make_tenant()
    await make_sites(tenant, 5)
    events = await followed(tenant)
    places = [one["place"] for one in events]
    assert places == list(range(1, len(places) + 1))
    rest = await followed(tenant, **{"last-event-id": "3"})
    assert [one["place"] for one in rest] == places[3:]


async def test_topics_choose(service: Service) -> None:
    tenant = await service.make_tenant()
    await make_sites(tenant, 2)
    await service.make_caller(tenant, "viewer")
    query = {"seconds": 1, "after": 0, "topic": "sites"}
    answer = await tenant.get("/v1/events:stream", params=query)
    assert [one["kind"] for one in events_in(answer.text)] == ["sites.created"] * 2


async def test_a_place_that_is_gone_is_told_with_the_oldest(service: Service) -> None:
    tenant = await service.make_tenant()
    await make_sites(tenant, 4)
    engine = create_engine(service.url.set(username=MIGRATE))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM events WHERE place <= 2"))
    engine.dispose()
    for path in ("/v1/events", "/v1/events:stream"):
        gone = await tenant.get(path, params={"after": 1})
        assert gone.status_code == 410, gone.text
        assert gone.json()["code"] == "cursor_too_old"
        assert "place 3" in gone.json()["detail"]
    assert (await tenant.get("/v1/events", params={"after": 2})).status_code == 200


async def test_a_bad_last_event_id_is_named(service: Service) -> None:
    tenant = await service.make_tenant()
    answer = await tenant.get("/v1/events:stream", headers={"last-event-id": "x"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def _read(
    service: Service, hub: EventHub, tenant: Caller, is_allowed: bool = True
) -> AsyncIterator[str]:
    token = parse_token(tenant.token or "")
    assert token is not None
    assert token.tenant_id is not None

    async def still() -> bool:
        return is_allowed

    reading = Reading(token.tenant_id, 0, (), _SECONDS_MAX)
    async for message in stream_events(service.tools.database, hub, reading, still):
        yield message


async def test_what_happens_meanwhile_arrives(service: Service) -> None:
    tenant, hub = await service.make_tenant(), EventHub(service.tools.database, 0.02)
    seen: list[dict[str, Any]] = []

    async def read() -> None:
        async for message in _read(service, hub, tenant):
            seen.extend(events_in(message))

    reader = asyncio.create_task(read())
    await make_sites(tenant, 20)
    async with asyncio.timeout(_SECONDS_MAX):
        while sum(one["kind"] == "sites.created" for one in seen) < 20:
            await asyncio.sleep(0.02)
    places = [one["place"] for one in seen]
    assert places == list(range(1, len(places) + 1))
    hub.close()
    await asyncio.wait_for(reader, _SECONDS_MAX)


async def test_it_ends_with_its_credential(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_CHECK_SECONDS", 0.0)
    tenant, hub = await service.make_tenant(), EventHub(service.tools.database, 0.02)
    async with asyncio.timeout(_SECONDS_MAX):
        messages = [one async for one in _read(service, hub, tenant, is_allowed=False)]
    assert events_in("".join(messages)) == []


async def test_a_revoked_key_may_not_go_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(stream_module, "_ALIVE_SECONDS", 0.05)
    administrator = await service.make_tenant()
    made = await administrator.post("/v1/api-keys", {"name": "screen", "role": "viewer"})
    viewer = service.caller(made.json()["token"])
    query = {"seconds": int(_SECONDS_MAX)}
    following = asyncio.create_task(viewer.get("/v1/events:stream", params=query))
    await asyncio.sleep(0.3)
    assert not following.done()
    await administrator.post(f"/v1/api-keys/{made.json()['id']}:revoke")
    answer = await asyncio.wait_for(following, _SECONDS_MAX / 2)
    assert answer.status_code == 200
