"""`:restore`: a ticket that is good for one host, one group, one moment; and no key on the way."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from httpx2 import Response
from sqlalchemy import select

from app.certificates.service import load_tenant_authority
from app.dsm.commands import CommandKind
from app.keys.port import RECOVERY_CONTEXT
from app.keys.service import issue_data_key, wrapped_group_key
from app.kit.ids import Kind, parse
from app.kit.problems import Problem
from app.models import Command, GroupKeyRecord, Operation
from app.models.base import key_of
from host_agent.wire import ticket
from host_agent.wire.envelope import open_envelope
from host_agent.wire.keyrequest import HostIdentity, ask
from host_agent.wire.keys import GroupKey, TenantKey, open_with_tenant
from host_agent.wire.names import Identity
from host_agent.wire.nodecontrol import CertificateRequest, NodeCertificate
from tests.app.joining import enrol, join_host, make_join_token, make_key, request_of
from tests.app.protecting import acting, machine, machine_ids, make_vpg, report
from tests.app.service import Caller, Service
from tests.app.test_datanodes import FOLDER, connected, joined_node
from tests.app.test_datanodes import tenant_id as id_of

pytestmark = pytest.mark.anyio
GENERATION = bytes(range(16))


async def make_door(service: Service, tenant: Caller) -> ec.EllipticCurvePrivateKey:
    """A data node with a restore process of the tenant, whose key this is."""
    assert (await service.provider.post("/v1/provider/journal-stores", FOLDER)).is_success
    node_id, _ = await joined_node(service)
    return await make_door_at(service, await id_of(tenant), node_id)


async def make_door_at(service: Service, shown: str, node_id: str) -> ec.EllipticCurvePrivateKey:
    """The same at this data node, for the tenant of this identifier."""
    key = make_key()
    async with connected(service, node_id) as node:
        await node.read_until_told(shown)
        node.say(CertificateRequest(1, request_of(key), shown, "restore"))
        while not isinstance(message := await node.read(), NodeCertificate):
            pass
    assert message.error is None
    return key


async def protected(service: Service, tenant: Caller) -> tuple[str, str]:
    """(group, host) of a tenant with one protected machine."""
    host_id, _ = await join_host(tenant, "source")
    await report(service, tenant, host_id, machine("shop", "root"))
    made = await make_vpg(tenant, "shop", (await machine_ids(tenant))["shop"])
    return made["id"], host_id


async def restore(caller: Caller, vpg_id: str, host_id: str, **changed: Any) -> Response:
    """Ask for a restore."""
    wanted = {"at": "latest", "host_id": host_id, "directory": "/restored", **changed}
    return await caller.post(f"/v1/vpgs/{vpg_id}:restore", wanted)


async def order_of(service: Service, tenant: Caller, operation_id: str) -> dict[str, Any]:
    """What the manager is to tell the host."""
    async with acting(service, tenant) as (session, _):
        key = key_of(session.tenant_id, parse(Kind.OPERATION, operation_id))
        order: dict[str, Any] = (await session.orm.get_one(Operation, key)).input["order"]
        return order


async def test_a_host_is_sent_a_ticket_that_opens_the_group(service: Service) -> None:
    tenant = await service.make_tenant()
    door = await make_door(service, tenant)
    vpg_id, host_id = await protected(service, tenant)
    answer = await restore(tenant, vpg_id, host_id)
    assert answer.status_code == 202, answer.text
    operation = answer.json()
    assert (operation["kind"], operation["subject"]) == ("vpg.restore", vpg_id)
    assert "order" not in operation["input"], "a ticket is for the host alone"
    order = await order_of(service, tenant, operation["id"])
    assert order["operation"] == operation["id"]
    assert (order["doors"], order["directory"]) == (["node:7440"], "/restored")
    async with acting(service, tenant) as (session, _):
        authority = await load_tenant_authority(session, service.tools.sealer)
        found = ticket.check(order["ticket"], authority.key.public_key())
        assert (found.vpg, found.streams, found.host) == (vpg_id, [host_id], host_id)
        assert 890 <= found.begin_by - service.tools.clock.now().timestamp() <= 901
        wrapped = await wrapped_group_key(session, parse(Kind.VPG, vpg_id))
        assert ticket.open_group_key(found, [door]).wrapped == wrapped.wrapped
        commands = await session.orm.scalars(
            select(Command.kind).where(
                Command.operation_id == parse(Kind.OPERATION, operation["id"])
            )
        )
        assert commands.all() == [CommandKind.RESTORE]


async def test_what_cannot_be_restored_is_said(service: Service) -> None:
    tenant = await service.make_tenant()
    vpg_id, host_id = await protected(service, tenant)
    answer = await restore(tenant, vpg_id, host_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_restore_door")
    await make_door(service, tenant)
    empty = await make_vpg(tenant, "empty")
    answer = await restore(tenant, empty["id"], host_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_restore")
    for field, value in (("directory", "relative"), ("at", ""), ("directory", "/a\nb")):
        answer = await restore(tenant, vpg_id, host_id, **{field: value})
        assert answer.status_code == 422
    await tenant.post(f"/v1/hosts/{host_id}:revoke")
    answer = await restore(tenant, vpg_id, host_id)
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


@pytest.mark.invariant("I9")
async def test_nothing_is_restored_to_anothers_host(service: Service) -> None:
    own, other = await service.make_tenant(), await service.make_tenant()
    await make_door(service, own)
    vpg_id, host_id = await protected(service, own)
    foreign_vpg, foreign_host = await protected(service, other)
    absent = (await restore(own, vpg_id, "host_" + "0" * 26)).json()
    for vpg, host in ((vpg_id, foreign_host), (foreign_vpg, host_id)):
        answer = await restore(own, vpg, host)
        assert answer.status_code == 404
        assert {**answer.json(), "request_id": ""} == {**absent, "request_id": ""}
    viewer = await service.make_caller(own, "viewer")
    assert (await restore(viewer, vpg_id, host_id)).status_code == 403


async def test_a_host_gets_its_streams_key_and_the_exported_key_opens_the_journal(
    service: Service,
) -> None:
    """The break-glass way: the journal and the exported key, without the service."""
    tenant = await service.make_tenant("Acme")
    shown = await id_of(tenant)
    key = make_key()
    _, token = await make_join_token(tenant, "source")
    joined = (await enrol(tenant, token, request_of(key))).json()
    vpg = (await make_vpg(tenant, "shop"))["id"]
    identity = Identity(shown, vpg, joined["host_id"])
    asked = ask(HostIdentity(key, joined["certificate"]), identity, GENERATION)
    host = parse(Kind.HOST, joined["host_id"])
    keys = service.tools.keys
    async with acting(service, tenant) as (session, _):
        answer = await issue_data_key(session, keys, host, asked.request)
    data_key, stored = asked.open(answer)

    private = X25519PrivateKey.generate()
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    wanted = {"tenant_name": "Acme", "reason": "kept in the safe", "public_key": public}
    exported = await tenant.post("/v1/recovery-key:export", wanted)
    assert exported.status_code == 200, exported.text
    sealed = base64.b64decode(exported.json()["sealed"])
    opened = TenantKey.parse(open_envelope(private, sealed, RECOVERY_CONTEXT, shown))
    assert open_with_tenant(stored, opened, identity, GENERATION) == data_key
    events = (await tenant.get("/v1/events")).json()["items"]
    assert events[-1]["kind"] == "keys.recovery_key_exported"

    refused = await tenant.post("/v1/recovery-key:export", {**wanted, "tenant_name": "acme"})
    assert refused.json()["code"] == "name_not_confirmed"
    operator = await service.make_caller(tenant, "operator")
    assert (await operator.post("/v1/recovery-key:export", wanted)).status_code == 403

    await tenant.post(f"/v1/hosts/{joined['host_id']}:revoke")
    async with acting(service, tenant) as (session, _):
        with pytest.raises(Problem, match="revoked"):
            await issue_data_key(session, keys, host, asked.request)


async def test_the_database_holds_no_key(service: Service) -> None:
    tenant = await service.make_tenant()
    made = await make_vpg(tenant, "shop")
    async with acting(service, tenant) as (session, _):
        row = (await session.orm.scalars(select(GroupKeyRecord))).one()
        assert row.vpg_id == parse(Kind.VPG, made["id"])
        wrapped = await wrapped_group_key(session, row.vpg_id)
        with pytest.raises(Problem) as caught:
            await wrapped_group_key(session, parse(Kind.VPG, "vpg_" + "0" * 26))
        assert caught.value.code == "key_missing"
    assert GroupKey.__name__ not in (row.wrapped or "")
    assert set(wrapped.__struct_fields__) == {"tenant", "vpg", "id", "wrapped", "tenant_key_id"}


async def test_a_request_over_anothers_connection_is_refused(service: Service) -> None:
    tenant = await service.make_tenant()
    key = make_key()
    _, token = await make_join_token(tenant, "one")
    joined = (await enrol(tenant, token, request_of(key))).json()
    other, _ = await join_host(tenant, "two")
    vpg = (await make_vpg(tenant, "shop"))["id"]
    identity = Identity(await id_of(tenant), vpg, joined["host_id"])
    request = ask(HostIdentity(key, joined["certificate"]), identity, GENERATION).request
    async with acting(service, tenant) as (session, _):
        with pytest.raises(Problem) as caught:
            await issue_data_key(session, service.tools.keys, parse(Kind.HOST, other), request)
    assert caught.value.code == "key_refused"
