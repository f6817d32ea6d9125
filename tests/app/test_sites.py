"""Sites, and with them what every resource does: keys, versions, pages, events."""

from __future__ import annotations

import asyncio

import pytest

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


async def test_sixteen_writers_leave_events_without_a_gap(service: Service) -> None:
    tenant = await service.make_tenant()

    async def write(writer: int) -> None:
        for number in range(5):
            await tenant.post("/v1/sites", {"name": f"{writer}-{number}", "territory": "CH"})

    seen: list[int] = []

    async def read() -> None:
        after = 0
        while len(seen) < 81:
            page = (await tenant.get("/v1/events", params={"after": after, "limit": 7})).json()
            seen.extend(event["place"] for event in page["items"])
            after = page["after"]

    async with asyncio.timeout(60):
        await asyncio.gather(read(), *(write(writer) for writer in range(16)))
    assert seen == list(range(1, 82))
    verified = (await tenant.get("/v1/audit:verify")).json()
    assert verified["is_intact"] is True
    assert verified["entries"] == 81
