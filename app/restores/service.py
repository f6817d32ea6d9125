"""Restores of a tenant's groups: a signed ticket, sent to the host that is to use it."""

from __future__ import annotations

import secrets

from app.certificates.service import load_tenant_authority
from app.datanodes.plan import may_hold
from app.datanodes.restoring import restore_places
from app.dsm.commands import CommandKind, request_command
from app.dsm.commands import Wanted as Command
from app.hosts.service import get_host
from app.http.unit import TenantUnit
from app.keys.port import KeyRefused, RestoreProcess
from app.keys.service import wrapped_group_key
from app.kit.ids import Kind, show
from app.kit.problems import Problem
from app.models import Host, Operation, Site, Tenant, Vpg
from app.models.base import key_of
from app.models.hosts import HostState
from app.operations.service import ORDER, open_operation
from app.operations.service import Wanted as WantedOperation
from app.restores.plan import NODES_MAX, Moment, make_ticket
from app.restores.schemas import RestoreInput
from app.tenants.schemas import Plan
from app.vpgs.assigning import hosts_of
from host_agent.wire.ticket import issue

RESTORE = "vpg.restore"
_TICKET_BYTES = 16


async def restore_vpg(unit: TenantUnit, vpg: Vpg, wanted: RestoreInput) -> Operation:
    """Have a host bring a moment of a group back; never delayed. Problems `not_found`,
    `illegal_transition`, `jurisdiction`, `nothing_to_restore`, `no_restore_door`, of keys.
    """
    host = await get_host(unit, wanted.host_id)
    if host.state != HostState.ACTIVE:
        raise Problem("illegal_transition", f"The host {host.name} was shut out.")
    await _check_territory(unit, host)
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


async def _check_territory(unit: TenantUnit, host: Host) -> None:
    """A host at a site has that site's law; Problem `jurisdiction`."""
    tenant = await unit.session.orm.get_one(Tenant, unit.session.tenant_id)
    permitted = Plan(**tenant.plan).territories
    if permitted is None or host.site_id is None:
        return
    site = await unit.session.orm.get_one(Site, key_of(unit.session.tenant_id, host.site_id))
    if not may_hold(permitted, site.territory):
        raise Problem(
            "jurisdiction",
            f"The tenant's data may not come to {site.territory}, where {host.name} is.",
            hint="Choose a host at another site.",
        )
