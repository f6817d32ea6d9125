"""Sites, and with them what every resource does: keys, versions, pages, events."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from sqlalchemy import insert

from app.database.sessions import TenantSession
from app.events.ledger import Act, Circumstances, Happening, write_ledger
from app.kit.clock import SystemClock
from app.kit.ids import Kind, new_uuid, parse
from app.models import Event
from tests.app.service import Service

pytestmark = pytest.mark.anyio
SITE = {"name": "Zürich 1", "territory": "CH", "description": "first"}


async def test_a_site_is_made_read_changed_and_removed(service: Service) -> None:
    tenant = await service.make_tenant()
    made = await tenant.post("/v1/sites", SITE)
    assert made.status_code == 201
    where, version = made.headers["location"], made.headers["etag"]
    assert (await tenant.get(where)).json() == made.json()
    changed = await tenant.call(
        "PUT", where, json={**SITE, "name": "Zürich 2"}, headers={"if-match": version}
    )
    assert changed.status_code == 200
    assert changed.headers["etag"] != version
    stale = await tenant.call("DELETE", where, headers={"if-match": version})
    assert (stale.status_code, stale.json()["code"]) == (412, "etag_mismatch")
    blind = await tenant.call("DELETE", where)
    assert (blind.status_code, blind.json()["code"]) == (428, "etag_required")
    gone = await tenant.call("DELETE", where, headers={"if-match": changed.headers["etag"]})
    assert gone.status_code == 204
    assert (await tenant.get(where)).status_code == 404


async def test_a_repeat_with_the_same_key_has_one_effect(service: Service) -> None:
    tenant = await service.make_tenant()
    headers = {"idempotency-key": "once"}
    answers = await asyncio.gather(
        *(tenant.post("/v1/sites", SITE, headers=headers) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 7
    assert len((await tenant.get("/v1/sites")).json()["items"]) == 1
    other = await tenant.post("/v1/sites", {**SITE, "name": "other"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_failed_request_leaves_its_key_free(service: Service) -> None:
    tenant = await service.make_tenant()
    await tenant.post("/v1/sites", SITE)
    headers = {"idempotency-key": "again"}
    taken = await tenant.post("/v1/sites", SITE, headers=headers)
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    free = await tenant.post("/v1/sites", {**SITE, "name": "free"}, headers=headers)
    assert free.status_code == 201


async def test_pages_hold_every_site_once_in_both_directions(service: Service) -> None:
    tenant = await service.make_tenant()
    names = [f"site {number:02d}" for number in range(23)]
    for name in names:
        await tenant.post("/v1/sites", {"name": name, "territory": "CH"})
    for sort, expected in (("name", names), ("-name", names[::-1]), ("-created_at", names[::-1])):
        seen: list[str] = []
        cursor: str | None = None
        while cursor is not None or not seen:
            query = {"limit": 5, "sort": sort} | ({"cursor": cursor} if cursor else {})
            page = (await tenant.get("/v1/sites", params=query)).json()
            seen += [site["name"] for site in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == expected


@pytest.mark.parametrize("cursor", ["x", "AAAA", "é", "a" * 400])
async def test_a_cursor_that_was_not_given_out_is_refused(service: Service, cursor: str) -> None:
    tenant = await service.make_tenant()
    answer = await tenant.get("/v1/sites", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "cursor_invalid")


async def test_another_list_s_cursor_is_refused(service: Service) -> None:
    one, other = await service.make_tenant(), await service.make_tenant()
    for number in range(3):
        await one.post("/v1/sites", {"name": f"{number}", "territory": "CH"})
    cursor = (await one.get("/v1/sites", params={"limit": 1})).json()["next_cursor"]
    for caller, query in ((other, {}), (one, {"sort": "name"})):
        answer = await caller.get("/v1/sites", params={"limit": 1, "cursor": cursor, **query})
        assert answer.json()["code"] == "cursor_invalid"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a\nb"},
        {"name": ""},
        {"name": "x" * 81},
        {"name": "a\u202eb"},
        {"name": "e\u0301"},
        {"territory": "Switzerland"},
        {"tenant_id": "ten_0"},
        {"id": "site_1"},
        {"version": 7},
    ],
)
async def test_bad_fields_are_named(service: Service, wrong: dict[str, object]) -> None:
    tenant = await service.make_tenant()
    answer = await tenant.post("/v1/sites", {**SITE, **wrong})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_fields")
    assert answer.json()["errors"][0]["field"] == f"body.{next(iter(wrong))}"


_WRITERS = 16


async def write_and_read(service: Service, each: int) -> list[int]:
    """Places that a reader sees who goes on from its cursor while sixteen others write.

    Each transaction ends at a random moment after it took its turn, so that they overlap.
    """
    tenant = await service.make_tenant()
    tenant_id = parse(Kind.TENANT, (await tenant.get("/v1/tenant")).json()["id"])
    rng = random.Random(4)
    total = 1 + _WRITERS * each  # the tenant's own making is the first
    by = Circumstances("a test", "", "", service.tools.clock.now())

    async def write(writer: int) -> None:
        for number in range(each):
            async with service.tools.database.tenant(tenant_id) as session:
                await asyncio.sleep(rng.uniform(0, 0.004))
                subject = f"{writer}-{number}"
                happened, act = Happening("sites.made", subject), Act("sites.made", subject)
                await write_ledger(session, [happened], [act], by)
                await asyncio.sleep(rng.uniform(0, 0.002))
                await session.commit()

    seen: list[int] = []

    async def read() -> None:
        after = 0
        while len(seen) < total:
            page = (await tenant.get("/v1/events", params={"after": after, "limit": 50})).json()
            seen.extend(event["place"] for event in page["items"])
            after = page["after"]
            await asyncio.sleep(rng.uniform(0, 0.01))

    await asyncio.gather(read(), *(write(writer) for writer in range(_WRITERS)))
    verified = (await tenant.get("/v1/audit:verify")).json()
    assert verified["is_intact"] is True
    assert verified["entries"] == total
    return seen


async def test_sixteen_writers_leave_events_without_a_gap(service: Service) -> None:
    async with asyncio.timeout(120):
        seen = await write_and_read(service, 20)
    assert seen == list(range(1, 2 + _WRITERS * 20))


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_reader_misses_none_of_ten_thousand_events(service: Service) -> None:
    assert await write_and_read(service, 625) == list(range(1, 10_002))


async def test_control_numbers_of_a_sequence_are_missed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places that are given out before the commit's turn: a reader passes some by."""
    places = itertools.count(2)

    async def unlocked(session: TenantSession, happened: list[Happening], *_: Any) -> None:
        place = next(places)
        await asyncio.sleep(random.Random(place).uniform(0, 0.05))
        event = {
            "tenant_id": session.tenant_id,
            "place": place,
            "id": new_uuid(SystemClock().now()),
        }
        row = {"at": SystemClock().now(), "kind": "sites.made", "subject": "", "actor": ""}
        await session.orm.execute(insert(Event).values(**event, **row, data={}))

    monkeypatch.setattr("tests.app.test_sites.write_ledger", unlocked)
    with pytest.raises((TimeoutError, AssertionError)):
        async with asyncio.timeout(8):
            await write_and_read(service, 20)
