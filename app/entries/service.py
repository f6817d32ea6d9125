"""The provider's staff enters a tenant: the provider's log first, then the tenant's own ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select

from app.entries.schemas import EnterInput
from app.events.ledger import Act, Happening, write_ledger
from app.http.unit import ProviderUnit, TenantUnit
from app.identity.tokens import ENTRY, Token, make_token
from app.kit.ids import Kind, new_uuid, show
from app.models import ProviderAct, ProviderEntry
from app.tenants.service import get_tenant


async def enter_tenant(
    unit: ProviderUnit, tenant: str, wanted: EnterInput
) -> tuple[ProviderEntry, Token]:
    """A token that reads what the tenant has; Problem `not_found` or `illegal_transition`.

    The provider's log has the attempt before the tenant's scope is opened.
    """
    tenant_id = (await get_tenant(unit.session, tenant)).id
    token = make_token(tenant_id, new_uuid(unit.now), ENTRY)
    shown = show(Kind.PROVIDER_ENTRY, token.id)
    details = {"entry": shown, "reason": wanted.reason, "minutes": wanted.minutes}
    await note_act(unit, "tenants.entered", tenant, details)
    await unit.session.commit()
    entry = ProviderEntry(
        tenant_id=tenant_id,
        id=token.id,
        created_at=unit.now,
        version=1,
        provider_key_id=unit.principal.id,
        reason=wanted.reason,
        fingerprint=token.fingerprint(unit.tools.sealer),
        expires_at=unit.now + timedelta(minutes=wanted.minutes),
        ended_at=None,
    )
    async with unit.tools.database.tenant(tenant_id) as session:
        session.orm.add(entry)
        happened = Happening("provider_entries.begun", shown, details)
        act = Act("provider_entries.begun", shown, details=details)
        await write_ledger(session, [happened], [act], unit.circumstances)
        await session.commit()
    return entry, token


async def end_entry(unit: TenantUnit, entry: ProviderEntry) -> None:
    """Shut the provider's staff out at once. Repeats change nothing."""
    if entry.ended_at is not None or entry.expires_at <= unit.now:
        return
    entry.ended_at = unit.now
    entry.version += 1
    unit.note("provider_entries.ended", show(Kind.PROVIDER_ENTRY, entry.id))


async def note_act(
    unit: ProviderUnit, action: str, subject: str, details: dict[str, object]
) -> None:
    """Add an entry to the provider's log."""
    by = unit.circumstances
    unit.session.orm.add(
        ProviderAct(
            at=by.at,
            actor=by.actor,
            action=action,
            subject=subject,
            details=details,
            address=by.address,
            request_id=by.request_id,
        )
    )
    await unit.session.orm.flush()


async def read_acts(unit: ProviderUnit, after: int, limit: int) -> Sequence[ProviderAct]:
    """The provider's log after a place, in order."""
    found = await unit.session.orm.scalars(
        select(ProviderAct)
        .where(ProviderAct.place > after)
        .order_by(ProviderAct.place)
        .limit(limit)
    )
    return found.all()
