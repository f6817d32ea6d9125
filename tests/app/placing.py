"""The provider's pools and hosts in a test, and tenants that are placed on them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from app.kit.ids import Kind, parse
from app.models import Operation
from app.models.tenants import PROVIDER_ID
from app.rights.orders import place_body
from host_agent.wire import control
from tests.app.joining import enrol, make_key, request_of
from tests.app.service import Caller, Service

Json = dict[str, Any]


async def made(caller: Caller, path: str, body: Json) -> Json:
    """What a POST made."""
    answer = await caller.post(path, body)
    assert answer.status_code in (201, 202), answer.text
    found: Json = answer.json()
    return found


async def make_pool(service: Service, name: str, territory: str = "CH") -> str:
    """The id of a pool at a site of its own."""
    site = {"name": f"site of {name}", "territory": territory}
    site_id = (await made(service.provider, "/v1/provider/sites", site))["id"]
    pool = {"name": name, "site_id": site_id}
    return str((await made(service.provider, "/v1/provider/pools", pool))["id"])


async def join_pool(service: Service, pool_id: str, name: str) -> str:
    """The id of a host of the provider's that joined the pool."""
    wanted = {"name": name, "pool_id": pool_id}
    token = (await made(service.provider, "/v1/provider/join-tokens", wanted))["token"]
    answer = await enrol(service.provider, token, request_of(make_key()))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["host_id"])


async def id_of(tenant: Caller) -> str:
    """The tenant's id."""
    return str((await tenant.get("/v1/tenant")).json()["id"])


def policy(*pools: str, territories: list[str] | None = None, **right: Any) -> Json:
    """A policy that allows these pools."""
    return {
        "territories": territories,
        "pools": [{"pool_id": pool_id, **right} for pool_id in pools],
    }


async def set_policy(service: Service, tenant: Caller, wanted: Json) -> None:
    """Give the tenant this policy, which is no narrower than what it has."""
    path = f"/v1/provider/tenants/{await id_of(tenant)}/policy"
    answer = await service.provider.call("PUT", path, json=wanted, headers={"if-match": "*"})
    assert answer.status_code == 200, answer.text


async def ask_to_place(service: Service, tenant: Caller, host_id: str) -> Any:
    """The answer to a wish to place the tenant on the host."""
    wanted = {"tenant_id": await id_of(tenant), "host_id": host_id}
    return await service.provider.post("/v1/provider/placements", wanted)


async def order_of(service: Service, placement_id: str) -> control.Place:
    """What the host is told of a placement, as its manager reads it."""
    async with service.tools.database.tenant(PROVIDER_ID) as session:
        found = await session.orm.scalars(
            select(Operation)
            .where(Operation.tenant_id == PROVIDER_ID, Operation.subject == placement_id)
            .order_by(Operation.id.desc())
        )
        operation = found.first()
    assert operation is not None
    return place_body(operation.input, service.tools.sealer)


async def place(service: Service, tenant: Caller, host_id: str) -> tuple[str, str]:
    """(placement, host) of the tenant's process once it has joined; the latter is the tenant's."""
    answer = await ask_to_place(service, tenant, host_id)
    assert answer.status_code == 202, answer.text
    placement_id = answer.json()["id"]
    order = await order_of(service, placement_id)
    joined = await enrol(tenant, order.token, request_of(make_key()))
    assert joined.status_code == 201, joined.text
    assert joined.json()["tenant_id"] == order.tenant == await id_of(tenant)
    return placement_id, joined.json()["host_id"]


async def withdraw(service: Service, placement_id: str) -> Any:
    """The answer to a withdrawal as it was planned."""
    path = f"/v1/provider/placements/{placement_id}"
    plan = await made(service.provider, f"{path}:plan", {})
    return await service.provider.post(f"{path}:withdraw", {"plan_id": plan["id"]})


async def placement(service: Service, placement_id: str) -> Json:
    """As the provider sees it."""
    answer = await service.provider.get(f"/v1/provider/placements/{placement_id}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def pools_of(tenant: Caller) -> list[Json]:
    """As the tenant sees them."""
    found: list[Json] = (await tenant.get("/v1/pools")).json()["items"]
    return found


def key_of(placement_id: str) -> Any:
    """The placement's key in the database."""
    return parse(Kind.PLACEMENT, placement_id)
