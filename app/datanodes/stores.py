"""Stores of journals, and how each tenant's processes come in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from app.database.sessions import ProviderSession, SystemSession, TenantSession
from app.datanodes.schemas import JournalStoreInput, StoreCredentialInput
from app.http.unit import ProviderUnit
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.kit.sealing import Sealer
from app.models import JournalStore, StoreCredential, Tenant, TenantRecordNumber
from app.rights.places import choose_store, permitted_of
from host_agent.wire.serving import StoreAccess

_SHARED, _OWN = "journal_stores.sealed_credential", "store_credentials.sealed"


async def list_stores(session: ProviderSession) -> list[JournalStore]:
    """All of them, by their age."""
    return list(await session.orm.scalars(select(JournalStore).order_by(JournalStore.id)))


async def get_store(session: ProviderSession, text: str) -> JournalStore:
    """One store; Problem `not_found`."""
    try:
        found = await session.orm.get(JournalStore, parse(Kind.JOURNAL_STORE, text))
    except BadId:
        raise not_found() from None
    if found is None:
        raise not_found()
    return found


async def create_store(unit: ProviderUnit, wanted: JournalStoreInput) -> JournalStore:
    """A new store; Problem `name_taken`, `settings_refused`."""
    _check(wanted)
    sealed = None
    if wanted.access_key_id is not None:
        credential = wanted.model_dump(include={"access_key_id", "secret_access_key"})
        sealed = unit.tools.sealer.seal(json.dumps(credential).encode(), _SHARED, wanted.name)
    store = JournalStore(
        id=new_uuid(unit.now),
        name=wanted.name,
        territory=wanted.territory,
        url=wanted.url,
        wall=wanted.wall,
        sealed_credential=sealed,
        created_at=unit.now,
        version=1,
    )
    unit.session.orm.add(store)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is a store named {wanted.name}.") from None
    # Nodes have to be told of every tenant that was waiting for a store.
    await unit.session.orm.execute(
        update(TenantRecordNumber).values(version=TenantRecordNumber.version + 1)
    )
    return store


def _check(wanted: JournalStoreInput) -> None:
    is_folder = urlsplit(wanted.url).scheme == "file"
    if urlsplit(wanted.url).scheme not in ("file", "s3") or is_folder != (wanted.wall == "folder"):
        raise Problem(
            "settings_refused",
            "The store's URL and its wall do not go together.",
            hint="file:///folder has the wall `folder`; s3://… has `static` or `shared`.",
        )
    given = [wanted.access_key_id is not None, wanted.secret_access_key is not None]
    if any(given) != (wanted.wall == "shared") or any(given) != all(given):
        raise Problem(
            "settings_refused",
            "A shared credential belongs to a store whose wall is `shared`, and to no other.",
            hint="Give both parts of it. With `static`, give each tenant its own.",
        )


async def put_credential(
    unit: ProviderUnit, store: JournalStore, tenant_text: str, wanted: StoreCredentialInput
) -> str:
    """Give a tenant its own credential of this store, in the tenant's scope; its id. Problem
    `not_found`, `settings_refused`.
    """
    if store.wall != "static":
        raise Problem("settings_refused", f"The store {store.name} has no tenants' credentials.")
    try:
        tenant_id = parse(Kind.TENANT, tenant_text)
    except BadId:
        raise not_found() from None
    if await unit.session.orm.get(Tenant, tenant_id) is None:
        raise not_found()
    shown = show(Kind.TENANT, tenant_id)
    sealed = unit.tools.sealer.seal(wanted.model_dump_json().encode(), _OWN, shown)
    values = {"sealed": sealed, "changed_at": unit.now}
    async with unit.tools.database.tenant(tenant_id) as session:
        row = insert(StoreCredential).values(tenant_id=tenant_id, store_id=store.id, **values)
        await session.orm.execute(
            row.on_conflict_do_update(index_elements=["tenant_id", "store_id"], set_=values)
        )
        await session.commit()
    return shown


async def stores_by_age(session: SystemSession) -> list[JournalStore]:
    """All stores, for `chosen_store`."""
    return list(await session.orm.scalars(select(JournalStore).order_by(JournalStore.id)))


async def chosen_store(
    session: TenantSession, stores: Sequence[JournalStore]
) -> JournalStore | None:
    """Which of them, by their age, has the tenant's journals; None: none may."""
    places = [(store.name, store.territory) for store in stores]
    name = choose_store(await permitted_of(session), places)
    return next((store for store in stores if store.name == name), None)


async def access_of(
    session: TenantSession, store: JournalStore, sealer: Sealer
) -> StoreAccess | None:
    """How this tenant's processes come in; None while it has no credential."""
    if store.wall == "folder":
        return StoreAccess(store.url, "folder")
    if store.wall == "shared":
        assert store.sealed_credential is not None
        fields = _fields(sealer.open(store.sealed_credential, _SHARED, store.name))
        return StoreAccess(store.url, "shared", **fields)
    row = await session.orm.get(
        StoreCredential, {"tenant_id": session.tenant_id, "store_id": store.id}
    )
    if row is None:
        return None
    fields = _fields(sealer.open(row.sealed, _OWN, _shown(session.tenant_id)))
    return StoreAccess(store.url, "static", **fields)


def _shown(tenant_id: UUID) -> str:
    return show(Kind.TENANT, tenant_id)


def _fields(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(data)
    return fields
