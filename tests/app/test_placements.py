"""The provider's hosts, and tenants on them: by policy and territory alone, never as hosts."""

from __future__ import annotations

import json

import pytest

from tests.app.joining import enrol, join_host, make_key, request_of
from tests.app.placing import (
    ask_to_place,
    id_of,
    join_pool,
    make_pool,
    order_of,
    place,
    placement,
    policy,
    pools_of,
    set_policy,
    withdraw,
)
from tests.app.protecting import machine, machine_ids, make_vpg, report
from tests.app.service import Service

pytestmark = pytest.mark.anyio


async def test_a_tenant_is_placed_where_its_policy_and_the_territory_allow_it(
    service: Service,
) -> None:
    swiss, german = await make_pool(service, "swiss"), await make_pool(service, "german", "DE-BY")
    hosts = [await join_pool(service, pool, f"cloud-{pool[-1]}") for pool in (swiss, german)]
    tenant = await service.make_tenant(plan={"territories": ["CH"]})
    for host_id in hosts:
        answer = await ask_to_place(service, tenant, host_id)
        assert (answer.status_code, answer.json()["code"]) == (409, "not_granted")
    await set_policy(service, tenant, policy(swiss, german, territories=["CH"]))
    answer = await ask_to_place(service, tenant, hosts[1])
    assert (answer.status_code, answer.json()["code"]) == (409, "jurisdiction")
    placement_id, _ = await place(service, tenant, hosts[0])
    shown = await placement(service, placement_id)
    assert (shown["state"], shown["host_id"], shown["pool_id"]) == ("placed", hosts[0], swiss)
    again = await ask_to_place(service, tenant, hosts[0])
    assert (again.json()["id"], again.json()["state"]) == (placement_id, "placed")
    # Widened, the other one is permitted too.
    await set_policy(service, tenant, policy(swiss, german, territories=["CH", "DE"]))
    await place(service, tenant, hosts[1])


async def test_a_policy_may_name_hosts_of_a_pool(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    one, two = [await join_pool(service, pool, name) for name in ("one", "two")]
    tenant = await service.make_tenant()
    await set_policy(service, tenant, policy(pool, host_ids=[one]))
    assert (await ask_to_place(service, tenant, two)).json()["code"] == "not_granted"
    await place(service, tenant, one)
    for wrong in ([one.replace("host_0", "host_1")], ["x"]):
        path = f"/v1/provider/tenants/{await id_of(tenant)}/policy"
        wanted = policy(pool, host_ids=wrong)
        answer = await service.provider.call("PUT", path, json=wanted, headers={"if-match": "*"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_fields")


async def test_tenants_see_pools_and_nothing_of_hosts_or_of_each_other(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    host_id = await join_pool(service, pool, "rack-7-node-3")
    tenants = [await service.make_tenant(name) for name in ("first tenant", "second tenant")]
    for number, tenant in enumerate(tenants):
        await set_policy(service, tenant, policy(pool, machines_max=5))
        _, own = await place(service, tenant, host_id)
        await report(service, tenant, own, *(machine(f"m{n}", "vda") for n in range(number + 1)))
        await make_vpg(tenant, "shop", *(await machine_ids(tenant)).values())
    for number, tenant in enumerate(tenants):
        (shown,) = await pools_of(tenant)
        assert (shown["id"], shown["name"], shown["territory"]) == (pool, "cloud", "CH")
        used = (shown["machines_max"], shown["machines_used"], shown["machines_free"])
        assert used == (5, number + 1, 4 - number)
        assert shown["is_permitted"]
        assert shown["is_serving"]
        assert (await tenant.get("/v1/hosts")).json()["items"] == []
        assert (await tenant.get("/v1/join-tokens")).json()["items"] == []
        found = (await tenant.get("/v1/machines", params={"pool_id": pool})).json()["items"]
        assert [one["pool_id"] for one in found] == [pool] * (number + 1)
        assert all(one["host_id"] is None for one in found)
        seen = [
            await tenant.get(path, params={"limit": 200})
            for path in ("/v1/pools", "/v1/sites", "/v1/events", "/v1/audit", "/v1/machines")
        ]
        text = json.dumps([answer.json() for answer in seen])
        for hidden in ("rack-7", host_id, f"{('second', 'first')[number]} tenant"):
            assert hidden not in text
    outsider = await service.make_tenant()
    assert await pools_of(outsider) == []


async def test_a_pool_s_quota_holds(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    host_id = await join_pool(service, pool, "cloud-1")
    tenant = await service.make_tenant()
    await set_policy(service, tenant, policy(pool, machines_max=1))
    _, own = await place(service, tenant, host_id)
    await report(service, tenant, own, machine("a", "vda"), machine("b", "vda"))
    ids = await machine_ids(tenant)
    vpg = await make_vpg(tenant, "shop", ids["a"])
    answer = await tenant.post(f"/v1/vpgs/{vpg['id']}/machines", {"machine_id": ids["b"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "quota_exceeded")
    # A machine on a host of its own counts nothing there.
    home, _ = await join_host(tenant, "home")
    await report(service, tenant, home, machine("c", "vda"))
    await make_vpg(tenant, "other", (await machine_ids(tenant))["c"])


async def test_a_pool_s_site_is_not_the_tenant_s_to_change(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    tenant = await service.make_tenant()
    await tenant.post("/v1/sites", {"name": "cloud", "territory": "US"})
    await set_policy(service, tenant, policy(pool))
    sites = (await tenant.get("/v1/sites")).json()["items"]
    (own,) = [site for site in sites if site["pool_id"] == pool]
    assert own["name"] == f"cloud ({pool})"
    assert own["territory"] == "CH"
    path, any_version = f"/v1/sites/{own['id']}", {"if-match": "*"}
    moved = {"name": "cloud", "territory": "US"}
    changed = await tenant.call("PUT", path, json=moved, headers=any_version)
    removed = await tenant.call("DELETE", path, headers=any_version)
    for answer in (changed, removed):
        assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


async def test_a_withdrawn_tenant_is_shut_out_and_may_come_back(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    host_id = await join_pool(service, pool, "cloud-1")
    tenant = await service.make_tenant()
    await set_policy(service, tenant, policy(pool))
    placement_id, own = await place(service, tenant, host_id)
    await report(service, tenant, own, machine("m", "vda"))
    vpg = await make_vpg(tenant, "shop", (await machine_ids(tenant))["m"])
    path = f"/v1/provider/placements/{placement_id}:withdraw"
    answer = await service.provider.post(path, {})
    assert (answer.status_code, answer.json()["code"]) == (409, "plan_required")
    answer = await withdraw(service, placement_id)
    assert (answer.status_code, answer.json()["state"]) == (202, "withdrawing")
    assert not (await pools_of(tenant))[0]["is_serving"]
    (alert,) = (await tenant.get("/v1/alerts")).json()["items"]
    assert alert["code"] == "machine.missing"
    assert (await tenant.get(f"/v1/vpgs/{vpg['id']}")).json()["machines"] == 1
    kinds = [one["kind"] for one in (await tenant.get("/v1/events")).json()["items"]]
    assert [kind for kind in kinds if kind.startswith("pools.")] == [
        "pools.placing", "pools.joined", "pools.revoked", "pools.leaving",
    ]  # fmt: skip
    # While the host has not heard of it, it cannot be placed there anew.
    answer = await ask_to_place(service, tenant, host_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


async def test_a_repeated_wish_makes_the_token_before_useless(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    host_id = await join_pool(service, pool, "cloud-1")
    tenant = await service.make_tenant()
    await set_policy(service, tenant, policy(pool))
    placement_id = (await ask_to_place(service, tenant, host_id)).json()["id"]
    stale = (await order_of(service, placement_id)).token
    await ask_to_place(service, tenant, host_id)
    assert (await enrol(tenant, stale, request_of(make_key()))).status_code == 401
    fresh = (await order_of(service, placement_id)).token
    assert (await enrol(tenant, fresh, request_of(make_key()))).status_code == 201
    assert (await withdraw(service, placement_id)).status_code == 202


async def test_a_placed_process_renews_as_any_host_but_is_none_to_its_tenant(
    service: Service,
) -> None:
    pool = await make_pool(service, "cloud")
    host_id = await join_pool(service, pool, "cloud-1")
    tenant = await service.make_tenant()
    await set_policy(service, tenant, policy(pool))
    _, own = await place(service, tenant, host_id)
    for method, path in (("GET", f"/v1/hosts/{own}"), ("POST", f"/v1/hosts/{own}:revoke")):
        assert (await tenant.call(method, path)).status_code == 404
    # The provider's own host is not the tenant's either, nor the tenant's the provider's.
    assert (await tenant.get(f"/v1/hosts/{host_id}")).status_code == 404
    assert (await service.provider.get(f"/v1/provider/hosts/{own}")).status_code == 404
    assert (await service.provider.get(f"/v1/provider/hosts/{host_id}")).status_code == 200


async def test_the_provider_s_own_scope_is_nobody_s_tenant(service: Service) -> None:
    pool = await make_pool(service, "cloud")
    await join_pool(service, pool, "cloud-1")
    tenants = (await service.provider.get("/v1/provider/tenants")).json()["items"]
    assert tenants == []
    own = "ten_00000000000000000000000001"
    for path, body in (
        (f"/v1/provider/tenants/{own}:enter", {"reason": "to look around"}),
        ("/v1/provider/placements", {"tenant_id": own, "host_id": "host_x"}),
    ):
        assert (await service.provider.post(path, body)).status_code == 404
    acts = (await service.provider.get("/v1/provider/audit")).json()["items"]
    assert [act["action"] for act in acts] == [
        "sites.created", "pools.created", "join_tokens.created",
    ]  # fmt: skip
