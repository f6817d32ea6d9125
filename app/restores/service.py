"""Restores of a tenant's groups: a signed ticket, sent to the host that is to use it."""

from __future__ import annotations

import secrets

from sqlalchemy import func, select

from app.certificates.service import load_tenant_authority
from app.datanodes.restoring import restore_places
from app.dsm.commands import CommandKind, request_command
from app.dsm.commands import Wanted as Command
from app.dsm.health import Health
from app.hosts.service import get_host
from app.http.unit import TenantUnit
from app.keys.port import KeyRefused, RestoreProcess
from app.keys.service import wrapped_group_key
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import Problem, not_found
from app.models import Host, HostStatus, Operation, PoolGrant, Vpg
from app.models.hosts import HostState
from app.operations.service import ORDER, open_operation
from app.operations.service import Wanted as WantedOperation
from app.restores.plan import NODES_MAX, Moment, make_ticket
from app.restores.schemas import RestoreInput
from app.rights.places import check_host
from app.vpgs.assigning import hosts_of
from host_agent.wire.ticket import issue

RESTORE = "vpg.restore"
_TICKET_BYTES = 16


async def restore_vpg(unit: TenantUnit, vpg: Vpg, wanted: RestoreInput) -> Operation:
    """Have a host bring a moment of a group back; never delayed. Problems `not_found`,
    `illegal_transition`, `pool_empty`, `jurisdiction`, `nothing_to_restore`, `no_restore_door`, of
    keys.
    """
    host = await _destination(unit, wanted)
    await check_host(unit.session, host)
    streams = sorted(show(Kind.HOST, one) for one in await hosts_of(unit.session, vpg.id))
    if not streams:
        raise Problem("nothing_to_restore", f"No machine is in {vpg.name}.")
    shown = show(Kind.VPG, vpg.id)
    moment = Moment(show(Kind.TENANT, vpg.tenant_id), shown, streams, wanted.at)
    asked = WantedOperation(RESTORE, shown, {}, ("request", "restore"), is_cancellable=False)
    operation = open_operation(unit.session, asked, unit.circumstances)
    ticket, doors = await _ticket(unit, vpg, moment, show(Kind.HOST, host.id))
    order = {
        "operation": show(Kind.OPERATION, operation.id),
        "ticket": ticket,
        "doors": list(doors),
        "directory": wanted.directory,
    }
    operation.input = {**wanted.model_dump(), ORDER: order}
    await unit.session.orm.flush()
    command = Command(CommandKind.RESTORE, host.id, host.id, unit.now, operation.id)
    await request_command(unit.session, command)
    unit.note("vpgs.restore_requested", shown, **wanted.model_dump())
    return operation


async def _ticket(unit: TenantUnit, vpg: Vpg, moment: Moment, host: str) -> tuple[str, list[str]]:
    """The signed ticket, and the doors at which it is good."""
    places = await restore_places(unit.session, NODES_MAX)
    if not places.chains:
        raise Problem("no_restore_door", hint="Try again when a data node serves the tenant.")
    refused: Problem = Problem("no_restore_door")
    wrapped = await wrapped_group_key(unit.session, vpg.id)
    ticket_id = secrets.token_hex(_TICKET_BYTES)
    reason = f"{unit.principal.actor}: restore on {host}"
    sealed = []
    for chain in places.chains:
        try:
            to = RestoreProcess(chain, reason)
            sealed.append(await unit.tools.keys.seal_for_restore(wrapped, ticket_id, to))
        except KeyRefused as error:
            refused = error  # of a node whose certificate ran out; others may do
    if not sealed:
        raise Problem("no_restore_door", refused.message)
    made = make_ticket(ticket_id, moment, host, sealed, unit.now)
    authority = await load_tenant_authority(unit.session, unit.tools.sealer)
    return issue(made, authority.key), list(places.doors)


async def _destination(unit: TenantUnit, wanted: RestoreInput) -> Host:
    if wanted.pool_id is not None:
        return await _host_in_pool(unit, wanted.pool_id)
    assert wanted.host_id is not None
    host = await get_host(unit, wanted.host_id)
    if host.state != HostState.ACTIVE:
        raise Problem("illegal_transition", f"The host {host.name} was shut out.")
    return host


async def _host_in_pool(unit: TenantUnit, pool_id: str) -> Host:
    """One on which the tenant is placed, of those that are heard of if there are any."""
    try:
        key = parse(Kind.POOL, pool_id)
    except BadId:
        raise not_found() from None
    grants = await unit.session.orm.scalars(
        select(PoolGrant).where(
            PoolGrant.tenant_id == unit.session.tenant_id, PoolGrant.pool_id == key
        )
    )
    if grants.first() is None:
        raise not_found()
    status = (HostStatus.tenant_id == Host.tenant_id) & (HostStatus.host_id == Host.id)
    found = await unit.session.orm.scalars(
        select(Host)
        .outerjoin(HostStatus, status)
        .where(
            Host.tenant_id == unit.session.tenant_id,
            Host.pool_id == key,
            Host.placement_id.is_not(None),
            Host.state == HostState.ACTIVE,
        )
        .order_by((func.coalesce(HostStatus.health, Health.DOWN) != Health.UP), Host.id)
        .limit(1)
    )
    host = found.first()
    if host is None:
        raise Problem(
            "pool_empty", hint="Ask the provider to place the tenant on a host of the pool."
        )
    unit.require_at(host.site_id)
    return host
