"""Roles over the tenant, a site or a group: what lies beyond is absent, and nobody gives more than
he has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import true

from app.alerts.service import Raised, raise_alerts
from app.identity.privileges import OVER_PARTS, PRIVILEGES, Privilege, Role
from app.identity.scopes import Granted, Place, reaches_of
from app.kit.ids import Kind, new_uuid, show
from app.operations.service import Wanted, open_operation
from tests.app.joining import enrol, make_join_token, make_key, request_of
from tests.app.protecting import acting, machine, machine_ids, make_checkpoint, report
from tests.app.service import Caller, Service
from tests.app.test_isolation import MACHINES, absent, ask, routes_of, shown
from tests.app.test_query_counts import counted

pytestmark = pytest.mark.anyio
BEYOND = "bravo"
#: What is the tenant's own: seen by everybody who may, or by nobody with a part of the tenant.
_OF_THE_TENANT = ("service_profile_id", "provider_entry_id", "vpg_name")


@dataclass(frozen=True)
class Halves:
    """One tenant with two sites, each with one object of a kind."""

    service: Service
    administrator: Caller
    near: dict[str, str]
    far: dict[str, str]

    async def caller(self, role: str, scope: str | None) -> Caller:
        """Somebody with one grant."""
        return await self.service.make_caller(self.administrator, role, scope)


async def _half(service: Service, tenant: Caller, name: str) -> dict[str, str]:
    site = (await tenant.post("/v1/sites", {"name": name, "territory": "CH"})).json()["id"]
    join_id, token = await make_join_token(tenant, name, site_id=site)
    host = (await enrol(tenant, token, request_of(make_key()))).json()["host_id"]
    await report(service, tenant, host, machine(name, "vda"))
    wanted = {"machine_id": (await machine_ids(tenant))[name]}
    vpg = await tenant.post(
        "/v1/vpgs", {"name": name, "protected_site_id": site, "machines": [wanted]}
    )
    assert vpg.status_code == 201, vpg.text
    granted = {"name": name, "role": "viewer", "scope": site}
    key = (await tenant.post("/v1/api-keys", granted)).json()["id"]
    user = (await tenant.post("/v1/users", {**granted, "display_name": name})).json()["id"]
    return {
        "site_id": site,
        "host_id": host,
        "join_token_id": join_id,
        "machine_id": wanted["machine_id"],
        "vpg_id": vpg.json()["id"],
        "api_key_id": key,
        "user_id": user,
        "checkpoint_id": await make_checkpoint(service, tenant, vpg.json()["id"], name),
        **await _of_group(service, tenant, vpg.json()["id"], name),
    }


async def _of_group(service: Service, tenant: Caller, vpg: str, name: str) -> dict[str, str]:
    async with acting(service, tenant) as (session, by):
        await raise_alerts(session, [Raised("rpo.exceeded", "error", vpg, name)], by.at)
        operation = open_operation(session, Wanted("vpg.force_sync", vpg, {"note": name}), by)
    listed = (await tenant.get("/v1/alerts", params={"subject": vpg})).json()["items"]
    return {"alert_id": listed[0]["id"], "operation_id": show(Kind.OPERATION, operation.id)}


@pytest.fixture
async def halves(service: Service) -> Halves:
    tenant = await service.make_tenant()
    near = await _half(service, tenant, "alpha")
    return Halves(service, tenant, near, await _half(service, tenant, BEYOND))


async def _differences(halves: Halves, caller: Caller) -> list[str]:
    """Routes that answer something else for what is out of scope than for what is absent."""
    wrong = []
    for route in routes_of(halves.service):
        is_other = route[1].startswith("/v1/provider/") or " ".join(route) in MACHINES
        if "{" not in route[1] or is_other or any(name in route[1] for name in _OF_THE_TENANT):
            continue
        far = await ask(caller, route, halves.far)
        nothing = await ask(caller, route, absent(halves.far))
        if far.status_code != 404 or shown(far) != shown(nothing):
            wrong.append(f"{route}: {far.status_code}")
    return wrong


async def _leaks(halves: Halves, caller: Caller) -> list[str]:
    """Lists, events and single objects of the near half in which something of the far one is."""
    own = {**halves.near, "vpg_name": "alpha"}
    found = []
    for route in routes_of(halves.service):
        is_read = route[0] == "GET" and not route[1].startswith("/v1/provider")
        if not is_read or any(name in route[1] for name in _OF_THE_TENANT):
            continue
        answer = await ask(caller, route, own)
        beyond = (BEYOND, halves.far["vpg_id"], halves.far["site_id"], halves.far["host_id"])
        if any(text in answer.text for text in beyond):
            found.append(str(route))
    return found


@pytest.mark.parametrize("scope", ["site_id", "vpg_id"])
async def test_what_is_out_of_scope_is_as_absent_as_an_absent_one(
    halves: Halves, scope: str
) -> None:
    caller = await halves.caller("administrator", halves.near[scope])
    assert await _differences(halves, caller) == []
    assert await _leaks(halves, caller) == []
    # What is within is there.
    for path in ("vpgs/{vpg_id}", "machines/{machine_id}", "operations/{operation_id}"):
        assert (await caller.get(f"/v1/{path.format(**halves.near)}")).status_code == 200


async def test_without_the_condition_the_test_sees_the_leak(
    halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def everything(*_: object) -> Any:
        return true()

    caller = await halves.caller("administrator", halves.near["site_id"])
    monkeypatch.setattr("app.http.lookup.coverage", everything)
    monkeypatch.setattr("app.http.listing.coverage", everything)
    assert len(await _differences(halves, caller)) > 10
    assert len(await _leaks(halves, caller)) > 5


async def test_who_may_read_and_not_change_is_told_the_privilege(halves: Halves) -> None:
    key = await halves.administrator.post("/v1/api-keys", {"name": "mixed", "role": "viewer"})
    here = halves.near["site_id"]
    grants: list[dict[str, Any]] = [{"role": "viewer"}, {"role": "operator", "scope": here}]
    path = f"/v1/api-keys/{key.json()['id']}/grants"
    changed = await halves.administrator.call(
        "PUT", path, json={"grants": grants}, headers={"if-match": "*"}
    )
    assert [one["role"] for one in changed.json()["grants"]] == ["operator", "viewer"]
    mixed = halves.service.caller(key.json()["token"])
    for privilege, route in (
        ("sites.write", "PUT /v1/sites/{site_id}"),
        ("hosts.write", "POST /v1/hosts/{host_id}:revoke"),
        ("vpgs.write", "POST /v1/vpgs/{vpg_id}:pause"),
        ("machines.write", "PUT /v1/machines/{machine_id}/labels"),
        ("checkpoints.write", "POST /v1/vpgs/{vpg_id}/checkpoints"),
        ("operations.write", "POST /v1/operations/{operation_id}:cancel"),
        ("alerts.write", "POST /v1/alerts/{alert_id}:acknowledge"),
        ("vpgs.restore", "POST /v1/vpgs/{vpg_id}:restore"),
    ):
        method, _, path = route.partition(" ")
        seen = path.split(":")[0].removesuffix("/labels").format(**halves.far)
        assert (await mixed.get(seen)).status_code == 200
        answer = await ask(mixed, (method, path), halves.far)
        assert (answer.status_code, answer.json()["code"]) == (403, "privilege_missing"), route
        assert privilege in answer.json()["detail"], route
        assert (await ask(mixed, (method, path), halves.near)).status_code != 403, route


async def test_nobody_gives_what_he_does_not_have(halves: Halves) -> None:
    site, far = halves.near["site_id"], halves.far["site_id"]
    local = await halves.caller("administrator", site)
    wide = await halves.administrator.post(
        "/v1/users", {"name": "root", "display_name": "Root", "role": "administrator"}
    )
    wanted = {"name": "x", "display_name": "X", "role": "administrator"}
    refused = {None: 403, far: 404, halves.far["vpg_id"]: 404, "site_x": 404, "x": 404}
    for scope, status in refused.items():
        for path in ("/v1/users", "/v1/api-keys"):
            body = {**wanted, "scope": scope}
            body = body if path == "/v1/users" else {k: body[k] for k in ("name", "role", "scope")}
            assert (await local.post(path, body)).status_code == status, (path, scope)
    for number, scope in enumerate((site, halves.near["vpg_id"])):
        made = await local.post(
            "/v1/api-keys", {"name": f"n{number}", "role": "administrator", "scope": scope}
        )
        assert made.status_code == 201, made.text
        grants = f"/v1/api-keys/{made.json()['id']}/grants"
        for wider, status in ((None, 403), (far, 404)):
            grant: dict[str, Any] = {"grants": [{"role": "viewer", "scope": wider}]}
            answer = await local.call("PUT", grants, json=grant, headers={"if-match": "*"})
            assert answer.status_code == status
    assert (await local.post(f"/v1/users/{wide.json()['id']}:reset")).status_code == 404
    assert (await local.post(f"/v1/users/{wide.json()['id']}:disable")).status_code == 404
    operator = await halves.caller("operator", None)
    assert (await operator.post("/v1/api-keys", {"name": "y", "role": "viewer"})).status_code == 403


async def test_what_is_the_tenant_s_own_takes_the_whole_of_it(halves: Halves) -> None:
    local = await halves.caller("administrator", halves.near["site_id"])
    for method, path, body in (
        ("POST", "/v1/sites", {"name": "new", "territory": "CH"}),
        ("POST", "/v1/vpgs", {"name": "new"}),
        ("POST", "/v1/join-tokens", {"name": "new"}),
        ("POST", "/v1/service-profiles", {"name": "new", "settings": {}}),
        ("GET", "/v1/audit", None),
        ("GET", "/v1/provider-entries", None),
    ):
        answer = await local.call(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "privilege_missing"), path
    at_home = {"site_id": halves.near["site_id"]}
    made = await local.post("/v1/join-tokens", {"name": "new", **at_home})
    assert made.status_code == 201
    made = await local.post("/v1/vpgs", {"name": "new", "protected_site_id": at_home["site_id"]})
    assert made.status_code == 201
    assert (await local.get("/v1/service-profiles")).status_code == 200


async def test_a_group_stays_with_who_may_have_it(halves: Halves) -> None:
    local = await halves.caller("operator", halves.near["site_id"])
    of_group = await halves.caller("operator", halves.near["vpg_id"])
    path, here = f"/v1/vpgs/{halves.near['vpg_id']}", halves.near["site_id"]

    async def move(caller: Caller, site: str | None) -> int:
        body = {"name": "alpha", "protected_site_id": site}
        answer = await caller.call("PUT", path, json=body, headers={"if-match": "*"})
        return answer.status_code

    assert await move(local, halves.far["site_id"]) == 404
    assert await move(local, None) == 403
    assert await move(local, here) == 200
    # Who has the group alone does not see its site, and need not to change the rest.
    assert await move(of_group, here) == 200
    body = {"machine_id": halves.far["machine_id"]}
    for caller in (local, of_group):
        answer = await caller.post(f"{path}/machines", body)
        assert answer.json()["code"] == "invalid_fields"
    restore = {"host_id": halves.far["host_id"], "directory": "/restored"}
    assert (await local.post(f"{path}:restore", restore)).status_code == 404


async def test_events_are_those_of_the_scope(halves: Halves) -> None:
    local = await halves.caller("viewer", halves.near["site_id"])
    asked = {"after": 0, "limit": 200}
    items = (await local.get("/v1/events", params=asked)).json()["items"]
    kinds = {item["kind"] for item in items}
    assert {"sites.created", "hosts.joined", "vpgs.created"} <= kinds
    assert not any(kind.startswith(("tenants", "users", "api_keys")) for kind in kinds)
    stream = await local.get("/v1/events:stream", params={"after": 0, "seconds": 1})
    lines = [line for line in stream.text.splitlines() if line.startswith("data: ")]
    places = [json.loads(line.removeprefix("data: "))["place"] for line in lines]
    assert places == [item["place"] for item in items]


async def test_a_change_of_grants_is_told_and_the_last_administrator_stays(halves: Halves) -> None:
    tenant = halves.administrator
    keys = (await tenant.get("/v1/api-keys", params={"limit": 200})).json()["items"]
    first = next(key for key in keys if key["grants"][0]["role"] == "administrator")
    path, headers = f"/v1/api-keys/{first['id']}/grants", {"if-match": "*"}
    body: dict[str, Any] = {"grants": [{"role": "viewer"}]}
    last = await tenant.call("PUT", path, json=body, headers=headers)
    assert (last.status_code, last.json()["code"]) == (409, "last_administrator")
    assert (await tenant.call("PUT", path, json=body)).status_code == 428
    mine = f"/v1/api-keys/{halves.near['api_key_id']}/grants"
    body = {"grants": [{"role": "operator", "scope": halves.near["vpg_id"]}]}
    for _ in range(2):
        assert (await tenant.call("PUT", mine, json=body, headers=headers)).status_code == 200
    body = {"grants": []}
    assert (await tenant.call("PUT", mine, json=body, headers=headers)).json()["grants"] == []
    audit = (await tenant.get("/v1/audit", params={"limit": 200})).json()["items"]
    told = [entry["details"] for entry in audit if entry["action"] == "api_keys.granted"]
    before = f"viewer over {halves.near['site_id']}"
    after = f"operator over {halves.near['vpg_id']}"
    assert [one["grants"] for one in told] == [[[before], [after]], [[after], []]]
    used = await tenant.call("DELETE", f"/v1/sites/{halves.far['site_id']}", headers=headers)
    assert used.json()["code"] == "in_use"


async def test_lists_of_a_scope_take_as_many_queries_for_many_objects(halves: Halves) -> None:
    local = await halves.caller("administrator", halves.near["site_id"])
    paths = ["sites", "hosts", "join-tokens", "machines", "vpgs", "users", "api-keys", "alerts"]
    paths += ["operations", "events", f"vpgs/{halves.near['vpg_id']}/machines"]

    async def count() -> dict[str, int]:
        counts = {}
        for path in paths:
            with counted() as seen:
                assert (await local.get(f"/v1/{path}")).status_code == 200
            counts[path] = len(seen)
        return counts

    await local.get("/v1/self")  # a key notes once a minute that it is used
    few = await count()
    for number in range(3):
        site = halves.near["site_id"]
        await make_join_token(halves.administrator, f"join {number}", site_id=site)
        wanted = {"name": f"group {number}", "protected_site_id": site}
        vpg = (await halves.administrator.post("/v1/vpgs", wanted)).json()["id"]
        await _of_group(halves.service, halves.administrator, vpg, f"{number}")
        await halves.caller("viewer", vpg)
    assert await count() == few
    assert max(few.values()) <= 8


def test_reaches_are_joined_and_the_tenant_s_own_needs_all_of_it() -> None:
    now = datetime.now(UTC)
    site, vpg = new_uuid(now), new_uuid(now)
    reaches = reaches_of(
        [
            Granted(Role.VIEWER),
            Granted(Role.OPERATOR, Place(site_id=site)),
            Granted(Role.ADMINISTRATOR, Place(vpg_id=vpg)),
        ]
    )
    assert reaches[Privilege.VPGS_READ].is_whole
    assert reaches[Privilege.VPGS_WRITE].covers(Place(site_id=site))
    assert reaches[Privilege.VPGS_WRITE].covers(Place(vpg_id=vpg))
    assert not reaches[Privilege.VPGS_WRITE].covers(Place())
    assert not reaches[Privilege.JOURNALS_DESTROY].covers(Place(site_id=site))
    assert Privilege.AUDIT_READ not in reaches
    assert PRIVILEGES[Role.ADMINISTRATOR] - OVER_PARTS
