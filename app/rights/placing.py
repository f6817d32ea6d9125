"""Tenants on the provider's hosts: placed where the policy and the territory allow it, withdrawn.

The tenant's rows are written first, then the command to the host: a request that dies between is
repeated, and a host that never hears of it serves nobody it should not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import select, update

from app.dsm.commands import CommandKind, request_command
from app.dsm.commands import Wanted as Command
from app.entries.service import note_act
from app.hosts.schemas import JOIN_SECONDS_MAX
from app.hosts.service import JoinRight, add_join_token, revoke_host
from app.hosts.tokens import join_text
from app.http.unit import ProviderUnit, TenantUnit
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.models import Host, JoinToken, Placement, PoolGrant, Site
from app.models.base import key_of
from app.models.hosts import HostState
from app.models.tenants import PROVIDER_ID
from app.operations.service import Wanted as WantedOperation
from app.operations.service import open_operation
from app.pools.scope import scope_of
from app.pools.service import get_own_host
from app.rights.joined import move, note_forgotten
from app.rights.orders import PlacementOrder, placing_input
from app.rights.schemas import PlacementInput, PlacementOutput
from app.rights.state import PlacementEvent, PlacementState
from app.rights.territory import check_may_hold
from app.tenants.schemas import Plan
from app.tenants.service import get_tenant, locked_tenant
from app.vpgs.following import receive_inventory

PLACE, WITHDRAW = "placement.place", "placement.withdraw"
_LIFETIME = timedelta(seconds=JOIN_SECONDS_MAX)
#: More tenants than a host can serve.
_PLACEMENTS_MAX = 10_000
_NO_MACHINES = {"machines": [], "digest": ""}


@dataclass(frozen=True)
class Asked:
    """What `GET /v1/provider/placements` was asked for, by key."""

    tenant_id: UUID | None = None
    host_id: UUID | None = None
    state: PlacementState | None = None


async def list_placements(unit: ProviderUnit, asked: Asked, limit: int) -> Sequence[Placement]:
    """Placements of all tenants, the newest first."""
    columns = {
        Placement.tenant_id: asked.tenant_id,
        Placement.owner_host_id: asked.host_id,
        Placement.state: asked.state,
    }
    filters = [column == value for column, value in columns.items() if value is not None]
    found = await unit.session.orm.scalars(
        select(Placement).where(*filters).order_by(Placement.id.desc()).limit(limit)
    )
    return found.all()


async def get_placement(unit: ProviderUnit, text: str) -> Placement:
    """One placement; Problem `not_found`."""
    try:
        key = parse(Kind.PLACEMENT, text)
    except BadId:
        raise not_found() from None
    found = await unit.session.orm.scalars(select(Placement).where(Placement.id == key))
    placement = found.one_or_none()
    if placement is None:
        raise not_found()
    return placement


async def place_tenant(unit: ProviderUnit, wanted: PlacementInput) -> Placement:
    """Have a host serve a tenant. A repeat while it was not done sends a fresh token; Problems
    `not_found`, `illegal_transition`, `not_granted`, `jurisdiction`.
    """
    tenant = await get_tenant(unit.session, wanted.tenant_id)
    async with scope_of(unit, PROVIDER_ID) as own:
        host = await get_own_host(own, wanted.host_id)
    if host.state != HostState.ACTIVE:
        raise Problem("illegal_transition", f"The host {host.name} was shut out.")
    async with scope_of(unit, tenant.id) as inside:
        site = await _permitted_site(inside, host)
        placement = await _enter(inside, host)
        token = await _token(inside, placement, site)
    if token is None:
        return placement
    order = _order(placement)
    tools = unit.tools
    given = placing_input(order, token, tools.control_doors, tools.sealer)
    await _send(unit, placement, CommandKind.PLACE, WantedOperation(PLACE, order.placement, given))
    details: dict[str, object] = {"tenant": order.tenant, "host": wanted.host_id}
    await note_act(unit, "placements.requested", order.placement, details)
    return placement


async def _permitted_site(inside: TenantUnit, host: Host) -> Site:
    """The site that stands for the host's pool in the tenant's scope; Problems `not_granted`,
    `jurisdiction`.
    """
    tenant = await locked_tenant(inside.session)
    found = await inside.session.orm.scalars(
        select(PoolGrant).where(PoolGrant.tenant_id == tenant.id, PoolGrant.pool_id == host.pool_id)
    )
    grant = found.one_or_none()
    if grant is None or (grant.hosts is not None and str(host.id) not in grant.hosts):
        raise Problem(
            "not_granted",
            f"The policy of {tenant.name} does not allow the host {host.name}.",
            hint="Let its policy have the host's pool, or choose another host.",
        )
    site = await inside.session.orm.get_one(Site, key_of(tenant.id, grant.site_id))
    check_may_hold(Plan(**tenant.plan).territories, site.territory, host.name)
    return site


async def _enter(inside: TenantUnit, host: Host) -> Placement:
    assert host.pool_id is not None
    found = await inside.session.orm.scalars(
        select(Placement)
        .where(
            Placement.tenant_id == inside.session.tenant_id,
            Placement.owner_host_id == host.id,
            Placement.state != PlacementState.WITHDRAWN,
        )
        .with_for_update()
    )
    placement = found.one_or_none()
    if placement is None:
        placement = Placement(
            tenant_id=inside.session.tenant_id,
            id=new_uuid(inside.now),
            created_at=inside.now,
            version=1,
            pool_id=host.pool_id,
            owner_host_id=host.id,
            host_id=None,
            state=PlacementState.REQUESTED,
            failure=None,
            withdrawn_at=None,
        )
        inside.session.orm.add(placement)
        await inside.session.orm.flush()
    elif placement.state != PlacementState.PLACED:
        move(placement, PlacementEvent.REQUEST)
        placement.failure = None
    return placement


async def _token(inside: TenantUnit, placement: Placement, site: Site) -> str | None:
    """A fresh join token in place of those before; None for a tenant that is there already."""
    if placement.state == PlacementState.PLACED:
        return None
    await _revoke_tokens(inside, placement)
    name = show(Kind.PLACEMENT, placement.id)
    right = JoinRight(name, site.id, placement.pool_id, placement.id)
    _, token = await add_join_token(inside, right, _LIFETIME)
    inside.note("pools.placing", show(Kind.POOL, placement.pool_id))
    return join_text(token, inside.tools.root.fingerprint)


async def _revoke_tokens(inside: TenantUnit, placement: Placement) -> None:
    await inside.session.orm.execute(
        update(JoinToken)
        .where(
            JoinToken.tenant_id == inside.session.tenant_id,
            JoinToken.placement_id == placement.id,
            JoinToken.used_at.is_(None),
            JoinToken.revoked_at.is_(None),
        )
        .values(revoked_at=inside.now, version=JoinToken.version + 1)
    )


async def tell_withdrawn(unit: ProviderUnit, placement: Placement) -> None:
    """Have the host forget a tenant that is shut out. A repeat tells it again."""
    order = _order(placement)
    wanted = WantedOperation(WITHDRAW, order.placement, dict(vars(order)))
    await _send(unit, placement, CommandKind.WITHDRAW, wanted)
    await note_act(unit, "placements.withdrawn", order.placement, {"tenant": order.tenant})


async def revoke_own_host(unit: ProviderUnit, host_id: str) -> Host:
    """Shut a host of the provider's out for good, and every tenant's process on it. It is told
    nothing more. Problem `not_found`. Repeats change nothing.
    """
    async with scope_of(unit, PROVIDER_ID) as own:
        host = await get_own_host(own, host_id, lock=True)
        await revoke_host(own, host)
    rows = await list_placements(unit, Asked(host_id=host.id), _PLACEMENTS_MAX)
    for row in rows:
        if row.state != PlacementState.WITHDRAWN:
            async with scope_of(unit, row.tenant_id) as inside:
                await shut_out(inside, row.id)
                await note_forgotten(inside.session, row.id, inside.now)
    await note_act(unit, "hosts.revoked", host_id, {"name": host.name})
    return host


async def shut_out(inside: TenantUnit, placement_id: UUID) -> Placement:
    """In the tenant's scope: its certificate is revoked, its machines there are gone from sight."""
    session = inside.session
    placement = await session.orm.get_one(
        Placement,
        key_of(session.tenant_id, placement_id),
        with_for_update=True,
        populate_existing=True,
    )
    if placement.state == PlacementState.WITHDRAWN:
        return placement
    move(placement, PlacementEvent.WITHDRAW)
    await _revoke_tokens(inside, placement)
    if placement.host_id is not None:
        host = await session.orm.get_one(Host, key_of(session.tenant_id, placement.host_id))
        if host.state == HostState.ACTIVE:
            await revoke_host(inside, host)
            inside.happenings += await receive_inventory(session, host.id, _NO_MACHINES, inside.now)
    inside.note("pools.leaving", show(Kind.POOL, placement.pool_id))
    return placement


async def _send(
    unit: ProviderUnit, placement: Placement, kind: CommandKind, wanted: WantedOperation
) -> None:
    async with scope_of(unit, PROVIDER_ID) as own:
        operation = open_operation(own.session, wanted, own.circumstances)
        await own.session.orm.flush()
        host = placement.owner_host_id
        command = Command(kind, host, host, unit.now, operation.id)
        await request_command(own.session, command)
        own.note(f"{wanted.kind}_requested", wanted.subject, host=show(Kind.HOST, host))


def _order(placement: Placement) -> PlacementOrder:
    return PlacementOrder(
        show(Kind.TENANT, placement.tenant_id), show(Kind.PLACEMENT, placement.id)
    )


def show_placement(placement: Placement) -> PlacementOutput:
    """As the API shows it."""
    return PlacementOutput(
        id=show(Kind.PLACEMENT, placement.id),
        tenant_id=show(Kind.TENANT, placement.tenant_id),
        host_id=show(Kind.HOST, placement.owner_host_id),
        pool_id=show(Kind.POOL, placement.pool_id),
        state=PlacementState(placement.state),
        failure=placement.failure,
        created_at=placement.created_at,
        withdrawn_at=placement.withdrawn_at,
    )
