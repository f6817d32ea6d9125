"""Tenants: made by the provider, then closed to it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.certificates.service import make_authority
from app.database.sessions import ProviderSession, TenantSession
from app.events.ledger import Act, Circumstances, Happening, write_ledger
from app.http.unit import Tools
from app.identity.grants import add_grants
from app.identity.privileges import Role
from app.identity.schemas import ApiKeyInput
from app.identity.scopes import Granted
from app.identity.service import make_api_key
from app.identity.tokens import Token, make_token
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.models import Tenant, TenantLedger
from app.models.tenants import PROVIDER_ID, TENANT_LOCK, TenantState
from app.tenants.schemas import TenantInput

FIRST_KEY = "first administrator"


async def create_tenant(session: ProviderSession, wanted: TenantInput, now: datetime) -> Tenant:
    """Enter a tenant, still without a way in; Problem `name_taken`.

    One of the same name that was left half-made by a request that died is taken up again.
    """
    tenant = Tenant(
        id=new_uuid(now),
        name=wanted.name,
        state=TenantState.CREATING,
        plan=wanted.plan.model_dump(),
        created_at=now,
        version=1,
    )
    try:
        async with session.orm.begin_nested():
            session.orm.add(tenant)
    except IntegrityError:
        found = await session.orm.scalars(
            select(Tenant).where(Tenant.name == wanted.name).with_for_update()
        )
        tenant = found.one()
        if tenant.state != TenantState.CREATING:
            raise Problem("name_taken", f"There is a tenant named {wanted.name} already.") from None
    await session.commit()
    return tenant


async def open_tenant(tools: Tools, tenant: Tenant, by: Circumstances) -> Token:
    """In the tenant's own scope: its ledger, its authority, its first administrator's key."""
    token = make_token(tenant.id, new_uuid(by.at))
    wanted = ApiKeyInput(name=FIRST_KEY, role=Role.ADMINISTRATOR)
    async with tools.database.tenant(tenant.id) as session:
        own = await session.orm.get_one(Tenant, tenant.id, with_for_update=True)
        if own.state != TenantState.CREATING:
            raise Problem("name_taken", f"There is a tenant named {tenant.name} already.")
        own.state = TenantState.ACTIVE
        session.orm.add(TenantLedger(tenant_id=tenant.id))
        session.orm.add(make_authority(tools.root, tools.sealer, tenant.id, by.at))
        key = make_api_key(token, tools.sealer, wanted, by.at)
        session.orm.add(key)
        add_grants(session, key, [Granted(Role.ADMINISTRATOR)])
        subject = show(Kind.TENANT, tenant.id)
        happened = Happening("tenants.created", subject, {"name": tenant.name})
        act = Act("tenants.created", subject, details={"name": tenant.name})
        await write_ledger(session, [happened], [act], by)
        await session.commit()
    tenant.state = TenantState.ACTIVE
    return token


async def list_tenants(
    session: ProviderSession, limit: int, after: UUID | None
) -> tuple[list[Tenant], UUID | None]:
    """Tenants by age, after one of them; where the next page begins, None on the last."""
    wanted = select(Tenant).where(Tenant.id != PROVIDER_ID)
    if after is not None:
        wanted = wanted.where(Tenant.id > after)
    rows = list(await session.orm.scalars(wanted.order_by(Tenant.id).limit(limit + 1)))
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


async def locked_tenant(session: TenantSession) -> Tenant:
    """The scope's tenant, its row locked: what changes its rights or uses up its plan comes one
    after the other.
    """
    return await session.orm.get_one(
        Tenant, session.tenant_id, with_for_update=TENANT_LOCK, populate_existing=True
    )


async def find_tenant(session: ProviderSession, text: str) -> Tenant:
    """A tenant in any state; Problem `not_found`."""
    try:
        tenant = await session.orm.get(Tenant, parse(Kind.TENANT, text))
    except BadId:
        raise not_found() from None
    if tenant is None or tenant.id == PROVIDER_ID:
        raise not_found()
    return tenant


async def get_tenant(session: ProviderSession, text: str) -> Tenant:
    """A tenant that works; Problems `not_found`, `illegal_transition`."""
    tenant = await find_tenant(session, text)
    if tenant.state != TenantState.ACTIVE:
        raise Problem("illegal_transition", f"The tenant is {tenant.state}.")
    return tenant
