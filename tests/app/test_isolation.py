"""Every route against every kind of caller, made from the router and the schema.

C1: another tenant's object answers exactly as an absent one does; nobody comes in without a token;
the provider's staff get nothing on tenants' routes. The matrix runs three times: whole, with the
service's own scope removed, with row-level security off. One wall is enough; with both down the
test must see the leak, or it would be blind.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from httpx2 import Response
from sqlalchemy import URL, Engine, create_engine, event, text

from app.api import PUBLIC
from tests.app.joining import join_host
from tests.app.placing import join_pool, make_pool, place, policy, set_policy
from tests.app.protecting import (
    machine,
    machine_ids,
    make_alert,
    make_checkpoint,
    make_operation,
    make_vpg,
    report,
)
from tests.app.service import Caller, Service, running_service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
_SCOPE = re.compile(r"\w+\.tenant_id = %\(\w+\)s::UUID")
CANARY = "c4n4ry-of-the-other-tenant"
#: Routes for who is only about to come in: an API key is no way in.
MACHINES = {
    "POST /v1/enrolments",
    "POST /v1/renewals",
    "POST /v1/data-node-enrolments",
    "POST /v1/invitations:accept",
    "POST /v1/login",
    "GET /v1/login/{tenant_id}",
    "GET /v1/login/{tenant_id}/callback",
    "POST /v1/login:redeem",
}
ISSUER = {
    "url": "https://login.example.com",
    "client_id": "made",
    "client_secret": "made",
    "mappings": [{"group": "made", "role": "viewer"}],
}
#: What each route needs to be answered with 2xx. A route that is missing here fails the test.
BODIES: dict[str, dict[str, Any] | None] = {
    "GET /v1/tenant": None,
    "GET /v1/usage": None,
    "GET /v1/provider/usage": None,
    "GET /v1/sites": None,
    "POST /v1/sites": {"name": "made", "territory": "CH"},
    "GET /v1/sites/{site_id}": None,
    "PUT /v1/sites/{site_id}": {"name": "changed", "territory": "CH"},
    "DELETE /v1/sites/{site_id}": None,
    "GET /v1/pools": None,
    "GET /v1/users": None,
    "POST /v1/users": {"name": "made", "display_name": "Made", "role": "viewer"},
    "GET /v1/users/{user_id}": None,
    "PUT /v1/users/{user_id}/grants": {"grants": [{"role": "viewer"}]},
    "POST /v1/users/{user_id}:reset": None,
    "POST /v1/users/{user_id}:disable": None,
    "GET /v1/self": None,
    "POST /v1/self:log-out": None,
    "POST /v1/invitations:accept": {"password": "a long enough one"},
    "POST /v1/login": {"tenant": "x", "name": "x", "password": "x", "code": "x"},
    "GET /v1/login/{tenant_id}": None,
    "GET /v1/login/{tenant_id}/callback": None,
    "POST /v1/login:redeem": {"tenant": "x", "code": "x", "verifier": "x"},
    "GET /v1/issuer": None,
    "PUT /v1/issuer": ISSUER,
    "POST /v1/issuer:enforce": {"break_glass_user_id": "usr_x"},
    "POST /v1/issuer:relax": None,
    "DELETE /v1/issuer": None,
    "GET /v1/api-keys": None,
    "POST /v1/api-keys": {"name": "made", "role": "viewer"},
    "GET /v1/api-keys/{api_key_id}": None,
    "PUT /v1/api-keys/{api_key_id}/grants": {"grants": [{"role": "viewer"}]},
    "POST /v1/api-keys/{api_key_id}:revoke": None,
    "GET /v1/hosts": None,
    "GET /v1/hosts/{host_id}": None,
    "POST /v1/hosts/{host_id}:revoke": None,
    "GET /v1/join-tokens": None,
    "POST /v1/join-tokens": {"name": "made"},
    "GET /v1/join-tokens/{join_token_id}": None,
    "POST /v1/join-tokens/{join_token_id}:revoke": None,
    "POST /v1/enrolments": {"certificate_request": "x", "agent_version": "1"},
    "POST /v1/renewals": {
        "certificate": "x",
        "certificate_request": "x",
        "signature": "x",
        "agent_version": "1",
    },
    "GET /v1/machines": None,
    "GET /v1/machines/{machine_id}": None,
    "PUT /v1/machines/{machine_id}/labels": {"labels": {"app": "shop"}},
    "GET /v1/service-profiles": None,
    "POST /v1/service-profiles": {"name": "made", "settings": {}},
    "GET /v1/service-profiles/{service_profile_id}": None,
    "PUT /v1/service-profiles/{service_profile_id}": {"name": "changed", "settings": {}},
    "DELETE /v1/service-profiles/{service_profile_id}": None,
    "GET /v1/vpgs": None,
    "POST /v1/vpgs": {"name": "made"},
    "GET /v1/vpgs/{vpg_id}": None,
    "PUT /v1/vpgs/{vpg_id}": {"name": "changed"},
    "PUT /v1/vpgs/by-name/{vpg_name}": {},
    "GET /v1/vpgs/{vpg_id}/machines": None,
    "POST /v1/vpgs/{vpg_id}/machines": {"machine_id": "mach_x"},
    "POST /v1/vpgs/{vpg_id}:pause": None,
    "POST /v1/vpgs/{vpg_id}:resume": None,
    "POST /v1/vpgs/{vpg_id}:force-sync": {},
    "POST /v1/vpgs/{vpg_id}:restore": {"host_id": "host_x", "directory": "/restored"},
    "POST /v1/vpgs/{vpg_id}:delete": None,
    "POST /v1/vpgs/{vpg_id}:plan": {"settings": {"history_hours": 1}},
    "POST /v1/vpgs/{vpg_id}:apply": {"plan_id": "plan_x"},
    "POST /v1/vpgs/{vpg_id}:destroy-journal": {"confirm_name": "x", "reason": "x"},
    "GET /v1/vpgs/{vpg_id}/checkpoints": None,
    "POST /v1/vpgs/{vpg_id}/checkpoints": {"tag": "made"},
    "GET /v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}": None,
    "POST /v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}:pin": {},
    "POST /v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}:unpin": None,
    "GET /v1/vpgs/{vpg_id}/timeline": None,
    "GET /v1/alerts": None,
    "GET /v1/alerts/{alert_id}": None,
    "POST /v1/alerts/{alert_id}:acknowledge": None,
    "GET /v1/operations": None,
    "GET /v1/operations/{operation_id}": None,
    "POST /v1/operations/{operation_id}:cancel": None,
    "GET /v1/events": None,
    "GET /v1/events:stream": None,
    "GET /v1/audit": None,
    "GET /v1/audit:verify": None,
    "POST /v1/recovery-key:export": {
        "tenant_name": "own tenant",
        "reason": "a test",
        "public_key": "CSotfFhqMTZCjFNN0pbfQWkbYQ8VmiMd5bdZ9oUxrVg=",
    },
    "GET /v1/provider-entries": None,
    "GET /v1/provider-entries/{provider_entry_id}": None,
    "POST /v1/provider-entries/{provider_entry_id}:end": None,
    "POST /v1/provider/tenants/{tenant_id}:enter": {"reason": "a test", "minutes": 5},
    "GET /v1/provider/audit": None,
    "GET /v1/provider/tenants": None,
    "POST /v1/provider/tenants": {"name": "made"},
    "GET /v1/provider/tenants/{tenant_id}": None,
    "PUT /v1/provider/tenants/{tenant_id}/plan": {"vpgs_max": 1},
    "POST /v1/provider/tenants/{tenant_id}:suspend": {"reason": "a test"},
    "POST /v1/provider/tenants/{tenant_id}:resume": {"reason": "a test"},
    "GET /v1/provider/data-nodes": None,
    "POST /v1/provider/data-nodes": {"name": "made", "territory": "CH", "doors": ["made:7440"]},
    "GET /v1/provider/data-nodes/{data_node_id}": None,
    "POST /v1/provider/data-nodes/{data_node_id}:invite": None,
    "POST /v1/provider/data-nodes/{data_node_id}:drain": None,
    "POST /v1/provider/data-nodes/{data_node_id}:undrain": None,
    "POST /v1/provider/data-nodes/{data_node_id}:revoke": None,
    "GET /v1/provider/sites": None,
    "POST /v1/provider/sites": {"name": "made", "territory": "CH"},
    "GET /v1/provider/pools": None,
    "POST /v1/provider/pools": {"name": "made", "site_id": "site_x"},
    "POST /v1/provider/join-tokens": {"name": "made", "pool_id": "pool_x"},
    "GET /v1/provider/hosts": None,
    "GET /v1/provider/hosts/{host_id}": None,
    "GET /v1/provider/tenants/{tenant_id}/policy": None,
    "PUT /v1/provider/tenants/{tenant_id}/policy": {"territories": None, "pools": []},
    "GET /v1/provider/placements": None,
    "POST /v1/provider/placements": {"tenant_id": "ten_x", "host_id": "host_x"},
    "GET /v1/provider/placements/{placement_id}": None,
    "POST /v1/provider/placements/{placement_id}:plan": None,
    "POST /v1/provider/placements/{placement_id}:withdraw": {},
    "POST /v1/provider/tenants/{tenant_id}/policy:plan": {"territories": None, "pools": []},
    "POST /v1/provider/tenants/{tenant_id}/policy:apply": {"plan_id": "plan_x"},
    "POST /v1/provider/hosts/{host_id}:revoke": None,
    "POST /v1/data-node-enrolments": {"certificate_request": "x", "agent_version": "1"},
    "GET /v1/provider/journal-stores": None,
    "POST /v1/provider/journal-stores": {
        "name": "made",
        "territory": "CH",
        "url": "file:///made",
        "wall": "folder",
    },
    "PUT /v1/provider/journal-stores/{journal_store_id}/credentials/{tenant_id}": {
        "access_key_id": "made",
        "secret_access_key": "made",
    },
}
#: What is in paths of the provider's routes: no tenant has an object of these kinds.
PROVIDERS = {
    "data_node_id": "node_01hq3v5k8m9n2p4r6s7t8w9x0z",
    "journal_store_id": "store_01hq3v5k8m9n2p4r6s7t8w9x0z",
    "tenant_id": "ten_01hq3v5k8m9n2p4r6s7t8w9x0z",
    "placement_id": "plc_01hq3v5k8m9n2p4r6s7t8w9x0z",
}
#: Routes that need one to come to an end.
QUERIES = {"GET /v1/events:stream": {"after": 0, "seconds": 1}}


def routes_of(service: Service) -> list[tuple[str, str]]:
    """Every documented route that is not public: (method, path)."""
    paths = service.app.openapi()["paths"]
    return [
        (method.upper(), path)
        for path, methods in paths.items()
        if path not in PUBLIC
        for method in methods
    ]


@dataclass(frozen=True)
class World:
    """Two tenants, each with one object of a kind."""

    service: Service
    own: Caller
    other: Caller
    own_ids: dict[str, str]
    other_ids: dict[str, str]


async def _fill(service: Service, tenant: Caller, name: str) -> dict[str, str]:
    site = await tenant.post("/v1/sites", {"name": name, "territory": "CH"})
    key = await tenant.post("/v1/api-keys", {"name": name, "role": "viewer"})
    host_id, join_token_id = await join_host(tenant, name)
    login = {"name": name, "display_name": name, "role": "viewer"}
    user = await tenant.post("/v1/users", login)
    await report(service, tenant, host_id, machine(name, "vda"))
    machine_id = (await machine_ids(tenant))[name]
    vpg = await make_vpg(tenant, name, machine_id)
    profile = await tenant.post("/v1/service-profiles", {"name": name, "settings": {}})
    await tenant.call("PUT", "/v1/issuer", json={**ISSUER, "client_id": name})
    own_id = (await tenant.get("/v1/tenant")).json()["id"]
    entry = await service.provider.post(
        f"/v1/provider/tenants/{own_id}:enter", {"reason": f"looks at {name}"}
    )
    return {
        "provider_entry_id": entry.json()["id"],
        "site_id": site.json()["id"],
        "api_key_id": key.json()["id"],
        "user_id": user.json()["id"],
        "host_id": host_id,
        "join_token_id": join_token_id,
        "operation_id": await make_operation(service, tenant, name),
        "machine_id": machine_id,
        "service_profile_id": profile.json()["id"],
        "vpg_id": vpg["id"],
        "vpg_name": name,
        "checkpoint_id": await make_checkpoint(service, tenant, vpg["id"], name),
        "alert_id": await make_alert(service, tenant, name),
    }


async def make_world(service: Service) -> World:
    """The fixture of the matrix."""
    own, other = await service.make_tenant("own tenant"), await service.make_tenant(CANARY)
    ids = await _fill(service, own, "own"), await _fill(service, other, CANARY)
    await _share(service, own, other)
    return World(service, own, other, *ids)


async def _share(service: Service, *tenants: Caller) -> None:
    """A host of the provider's on which all of them are placed."""
    pool_id = await make_pool(service, "shared")
    host_id = await join_pool(service, pool_id, "shared-1")
    for tenant in tenants:
        await set_policy(service, tenant, policy(pool_id))
        _, process_id = await place(service, tenant, host_id)
        name = (await tenant.get("/v1/tenant")).json()["name"]
        await report(service, tenant, process_id, machine(f"{name} there", "vda"))


def absent(ids: dict[str, str]) -> dict[str, str]:
    """Identifiers of the right kind that nobody has."""
    made = {name: re.sub(r"_(\w).", r"_\g<1>z", value, count=1) for name, value in ids.items()}
    return made | {"vpg_name": "nobody's"}


async def ask(caller: Caller, route: tuple[str, str], ids: dict[str, str]) -> Response:
    """Call a route with these identifiers in its path."""
    method, path = route
    body = BODIES[f"{method} {path}"]
    options: dict[str, Any] = {} if body is None else {"json": body}
    options["params"] = QUERIES.get(f"{method} {path}")
    return await caller.call(
        method, path.format(**PROVIDERS, **ids), headers={"if-match": "*"}, **options
    )


def shown(answer: Response) -> tuple[int, dict[str, Any], dict[str, str]]:
    """What a caller can compare: all but the request's own id."""
    headers = {name: value for name, value in answer.headers.items() if name != "request-id"}
    body = answer.json()
    body.pop("request_id")
    return answer.status_code, body, headers


@pytest.fixture(params=["whole", "without-scope", "without-rls"])
async def world(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    with cluster.database() as url:
        async with running_service(url) as service:
            made = await make_world(service)
            with _broken(request.param, url):
                yield made


@contextmanager
def _broken(how: str, url: URL) -> Iterator[None]:
    if how == "without-rls":
        switch_rls_off(url)
    if how != "without-scope":
        yield
        return
    with scope_removed():
        yield


def switch_rls_off(url: URL) -> None:
    """Take down the database's wall, as a superuser could."""
    engine = create_engine(url)
    with engine.begin() as connection:
        tables = connection.execute(text("SELECT tablename FROM pg_policies")).scalars().all()
        for table in set(tables):
            connection.execute(text(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"))
    engine.dispose()


@contextmanager
def scope_removed() -> Iterator[None]:
    """Take down the service's wall: no query says which tenant it is of."""

    def drop_scope(_connection: Any, _cursor: Any, statement: str, *rest: Any) -> tuple[str, Any]:
        return _SCOPE.sub("true", statement), rest[0]

    event.listen(Engine, "before_cursor_execute", drop_scope, retval=True)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", drop_scope)


async def test_every_route_is_in_the_matrix(service: Service) -> None:
    assert sorted(BODIES) == sorted(f"{method} {path}" for method, path in routes_of(service))


@pytest.mark.invariant("I9")
async def test_another_tenant_s_object_is_as_absent_as_an_absent_one(world: World) -> None:
    for route in routes_of(world.service):
        is_other = route[1].startswith("/v1/provider/") or " ".join(route) in MACHINES
        if "{" not in route[1] or is_other:
            continue
        foreign = await ask(world.own, route, world.other_ids)
        nothing = await ask(world.own, route, absent(world.own_ids))
        assert foreign.status_code == 404, route
        left, right = shown(foreign), shown(nothing)
        assert left == right, route


@pytest.mark.invariant("I9")
async def test_nothing_of_another_tenant_is_in_any_answer(world: World) -> None:
    for route in routes_of(world.service):
        if route[1].startswith("/v1/provider/"):
            continue
        for ids in (world.own_ids, world.other_ids):
            answer = await ask(world.own, route, ids)
            assert CANARY not in answer.text, route
    events = (await world.other.get("/v1/audit:verify")).json()
    assert events["is_intact"] is True


async def test_who_has_no_token_or_the_wrong_kind_gets_the_same_refusal(world: World) -> None:
    tenant_token, provider_token = world.own.token or "", world.service.provider.token or ""
    bad = [None, "", "hf_x", tenant_token[:-1] + ("0" if tenant_token[-1] != "0" else "1")]
    bad += [tenant_token.replace("hf_", "hfp_"), provider_token.replace("hfp_", "hf_")]
    other_tenant = (world.other.token or "").split("_")[1]
    parts = tenant_token.split("_")
    bad += ["_".join([parts[0], other_tenant, *parts[2:]])]
    for route in routes_of(world.service):
        is_provider = route[1].startswith("/v1/provider/")
        wrong = tenant_token if is_provider else provider_token
        seen = set()
        for token in [*bad, wrong]:
            answer = await ask(Caller(world.own.http, token), route, world.own_ids)
            seen.add(repr(shown(answer)))
            assert answer.status_code == 401, (route, token)
        assert len(seen) == 1, route


async def test_whoever_lacks_a_privilege_is_told_which(service: Service) -> None:
    administrator = await service.make_tenant()
    ids = await _fill(service, administrator, "own")
    viewer = await service.make_caller(administrator, "viewer")
    allowed = {"GET /v1/tenant", "GET /v1/usage", "GET /v1/sites", "GET /v1/sites/{site_id}"}
    allowed |= {"GET /v1/provider-entries", "GET /v1/provider-entries/{provider_entry_id}"}
    allowed |= {"GET /v1/events", "GET /v1/events:stream"}
    allowed |= {"GET /v1/self", "POST /v1/self:log-out"}
    allowed |= {"GET /v1/machines", "GET /v1/machines/{machine_id}"}
    allowed |= {"GET /v1/service-profiles", "GET /v1/service-profiles/{service_profile_id}"}
    allowed |= {"GET /v1/vpgs", "GET /v1/vpgs/{vpg_id}", "GET /v1/vpgs/{vpg_id}/machines"}
    allowed |= {
        "GET /v1/vpgs/{vpg_id}/checkpoints",
        "GET /v1/vpgs/{vpg_id}/checkpoints/{checkpoint_id}",
        "GET /v1/vpgs/{vpg_id}/timeline",
    }
    allowed |= {"GET /v1/alerts", "GET /v1/alerts/{alert_id}"}
    allowed |= {"GET /v1/operations", "GET /v1/operations/{operation_id}"}
    allowed |= {"GET /v1/hosts", "GET /v1/hosts/{host_id}", "GET /v1/pools"}
    allowed |= {"GET /v1/join-tokens", "GET /v1/join-tokens/{join_token_id}"}
    for method, path in routes_of(service):
        if path.startswith("/v1/provider/") or f"{method} {path}" in MACHINES:
            continue
        answer = await ask(viewer, (method, path), ids)
        if f"{method} {path}" in allowed:
            assert answer.status_code in (200, 204), path
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "privilege_missing"), path
    denied = (await administrator.get("/v1/audit", params={"limit": 200})).json()["items"]
    routes = routes_of(service)
    providers = sum(path.startswith("/v1/provider/") for _, path in routes)
    others = providers + len(MACHINES) + len(allowed)
    assert sum(entry["outcome"] == "denied" for entry in denied) == len(routes) - others


async def test_without_both_walls_the_matrix_sees_the_leak(cluster: Cluster) -> None:
    with cluster.database() as url:
        async with running_service(url) as service:
            world = await make_world(service)
            switch_rls_off(url)
            with scope_removed():
                answer = await world.own.get("/v1/sites")
            assert CANARY in answer.text
