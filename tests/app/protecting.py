"""What hosts and the data services manager enter, in a test, as they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.alerts.service import Raised, raise_alerts
from app.checkpoints.merging import Taken
from app.checkpoints.recording import record_checkpoints
from app.checkpoints.state import CheckpointKind, CheckpointState
from app.database.sessions import TenantSession
from app.events.ledger import Circumstances, Happening, write_ledger
from app.kit.ids import Kind, new_uuid, parse, show
from app.operations.service import Wanted, open_operation
from app.vpgs.following import receive_inventory
from tests.app.service import Caller, Service


@asynccontextmanager
async def acting(
    service: Service, tenant: Caller
) -> AsyncIterator[tuple[TenantSession, Circumstances]]:
    """A transaction in the tenant's scope, as a process of the control plane opens it."""
    tenant_id = parse(Kind.TENANT, (await tenant.get("/v1/tenant")).json()["id"])
    async with service.tools.database.tenant(tenant_id) as session:
        yield session, Circumstances("dsm", "", "", service.tools.clock.now())
        await session.commit()


def machine(name: str, *disks: str, size: int = 1 << 30) -> dict[str, Any]:
    """A machine as a host reports it."""
    places = [{"name": disk, "path": f"/disks/{name}.{disk}", "bytes": size} for disk in disks]
    return {"name": name, "uuid": None, "disks": places}


async def report(
    service: Service, tenant: Caller, host_id: str, *machines: dict[str, Any]
) -> list[Happening]:
    """A host tells what it has."""
    message = {"machines": list(machines), "digest": "0"}
    async with acting(service, tenant) as (session, by):
        host = parse(Kind.HOST, host_id)
        happenings = await receive_inventory(session, host, message, by.at)
        await write_ledger(session, happenings, [], by)
        return happenings


async def machine_ids(tenant: Caller) -> dict[str, str]:
    """Name to id of the tenant's machines."""
    answer = await tenant.get("/v1/machines", params={"limit": 200})
    return {one["name"]: one["id"] for one in answer.json()["items"]}


async def make_vpg(tenant: Caller, name: str, *machines: str, **settings: Any) -> dict[str, Any]:
    """A group with these machines, by their ids."""
    members = [{"machine_id": machine_id} for machine_id in machines]
    wanted = {"name": name, "machines": members, "settings": settings}
    answer = await tenant.post("/v1/vpgs", wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def record(service: Service, tenant: Caller, *taken: Taken) -> None:
    """The engine tells of checkpoints."""
    async with acting(service, tenant) as (session, by):
        await write_ledger(session, await record_checkpoints(session, taken, by.at), [], by)


async def make_checkpoint(service: Service, tenant: Caller, vpg_id: str, tag: str) -> str:
    """The id of a complete checkpoint with a tag."""
    now = service.tools.clock.now()
    key, vpg = new_uuid(now), parse(Kind.VPG, vpg_id)
    kind, state = CheckpointKind.TAGGED, CheckpointState.COMPLETE
    await record(service, tenant, Taken(vpg, key, now, now, state, kind, tag=tag))
    return show(Kind.CHECKPOINT, key)


async def make_alert(service: Service, tenant: Caller, name: str) -> str:
    """The id of an open alert."""
    async with acting(service, tenant) as (session, by):
        await raise_alerts(session, [Raised("rpo.exceeded", "error", "vpg_x", name)], by.at)
    alerts = (await tenant.get("/v1/alerts")).json()["items"]
    return str(alerts[0]["id"])


async def make_operation(service: Service, tenant: Caller, name: str) -> str:
    """The id of an operation that waits."""
    async with acting(service, tenant) as (session, by):
        wanted = Wanted("vpg.force_sync", "vpg_x", {"note": name}, steps=("compare", "send"))
        return show(Kind.OPERATION, open_operation(session, wanted, by).id)
