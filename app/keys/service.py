"""Keys of a tenant's groups: made, handed to hosts, exported. Nothing here sees one opened."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, select

from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.hosts.service import revoked_hosts
from app.http.unit import TenantUnit
from app.keys.port import KeyMissing, KeyRefused, KeyService, Recipient, WrappedKey
from app.keys.schemas import RecoveryKeyInput
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import Problem
from app.models import GroupKeyRecord, Tenant
from app.users.service import step_up
from host_agent.wire.keyrequest import DataKeyAnswer, DataKeyRequest

#: The wrapped key of any of the tenant's groups: it names the tenant key that is used.
ANY_WRAPPED = (
    select(GroupKeyRecord.wrapped)
    .where(
        GroupKeyRecord.tenant_id == bindparam("tenant_id"),
        GroupKeyRecord.wrapped.is_not(None),
    )
    .limit(1)
)


async def make_group_key(unit: TenantUnit, vpg_id: UUID, known: str | None) -> WrappedKey:
    """A new group's key, wrapped, for the caller to enter; Problem. One that is never entered opens
    nothing. `known` is what ANY_WRAPPED finds.
    """
    session, keys = unit.session, unit.tools.keys
    tenant, vpg = show(Kind.TENANT, session.tenant_id), show(Kind.VPG, vpg_id)
    return await keys.new_group_key(tenant, vpg, await _tenant_key_id(session, keys, known))


def note_group_key(unit: TenantUnit, made: WrappedKey) -> None:
    """It was entered."""
    ids = {"key_id": made.id, "tenant_key_id": made.tenant_key_id}
    unit.note("keys.group_key_made", made.vpg, **ids)


async def wrapped_group_key(session: TenantSession, vpg_id: UUID) -> WrappedKey:
    """A group's key as it is kept; KeyMissing."""
    found = await session.orm.scalars(
        select(GroupKeyRecord.wrapped).where(
            GroupKeyRecord.tenant_id == session.tenant_id, GroupKeyRecord.vpg_id == vpg_id
        )
    )
    wrapped = found.one_or_none()
    if wrapped is None:
        raise KeyMissing("The group has no key, or it was destroyed.")
    return WrappedKey.parse(wrapped)


async def destroy_group_key(session: TenantSession, vpg_id: UUID, now: datetime) -> list[Happening]:
    """Forget a group's key for good: nothing opens its journal any more. Repeats change nothing."""
    key = {"tenant_id": session.tenant_id, "vpg_id": vpg_id}
    row = await session.orm.get(GroupKeyRecord, key, with_for_update=True)
    if row is None or row.destroyed_at is not None:
        return []
    row.wrapped, row.destroyed_at = None, now
    return [Happening("keys.group_key_destroyed", show(Kind.VPG, vpg_id))]


async def issue_data_key(
    session: TenantSession, keys: KeyService, host_id: UUID, request: DataKeyRequest
) -> DataKeyAnswer:
    """Relay a host's request, which came over that host's own connection; Problem.

    Who was revoked is said with each request: the key service never forgets it.
    """
    named = (request.tenant, request.host)
    if named != (show(Kind.TENANT, session.tenant_id), show(Kind.HOST, host_id)):
        raise KeyRefused("The request is of another host than its connection.")
    try:
        vpg_id = parse(Kind.VPG, request.vpg)
    except BadId:
        raise KeyRefused("The request names no group.") from None
    wrapped = await wrapped_group_key(session, vpg_id)
    return await keys.issue_data_key(request, wrapped, await revoked_hosts(session))


async def export_recovery_key(unit: TenantUnit, wanted: RecoveryKeyInput) -> bytes:
    """The tenant's key file, sealed to the key that the caller made for this; Problem."""
    session, keys = unit.session, unit.tools.keys
    tenant = await session.orm.get_one(Tenant, session.tenant_id)
    if wanted.tenant_name != tenant.name:
        raise Problem(
            "name_not_confirmed",
            "The name that was typed is not the tenant's.",
            hint="Whoever has this key can read everything: type the tenant's name to confirm.",
        )
    await step_up(unit, wanted.code)
    known = await session.orm.scalar(ANY_WRAPPED, {"tenant_id": session.tenant_id})
    key_id = await _tenant_key_id(session, keys, known)
    shown = show(Kind.TENANT, session.tenant_id)
    reason = f"{unit.principal.actor}: {wanted.reason}"
    sealed = await keys.export_tenant_key(shown, Recipient(wanted.public_key, reason))
    unit.note("keys.recovery_key_exported", shown, key_id=key_id, reason=wanted.reason)
    return sealed


async def _tenant_key_id(session: TenantSession, keys: KeyService, known: str | None) -> str:
    """The tenant key that is used. One that is lost is never silently replaced by another."""
    if known is not None:
        return WrappedKey.parse(known).tenant_key_id
    return await keys.make_tenant_key(show(Kind.TENANT, session.tenant_id))
