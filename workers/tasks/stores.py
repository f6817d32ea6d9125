"""In which store a tenant's journals are, for who works on them.

It is chosen as for the data nodes that write them. A worker goes into it by its own credential,
which may delete; where a store has one for everybody, by that.
"""

from __future__ import annotations

from typing import Any

from app.database.sessions import Database, TenantSession
from app.datanodes.stores import access_of, chosen_store, stores_by_age
from app.kit.sealing import Sealer
from host_agent.wire.errors import HoldfastError

_CREDENTIAL = ("access_key_id", "secret_access_key", "session_token")


class NoStore(HoldfastError):
    """The deployment has stores, and the tenant's journals may lie in none of them."""

    code = "no_store"


async def store_of(
    database: Database, session: TenantSession, sealer: Sealer, otherwise: str
) -> dict[str, Any]:
    """`store`, its URL, and `credentials`, None for the worker's own. NoStore.

    `otherwise` is the URL where the provider has named no store yet.
    """
    async with database.system() as system:
        stores = await stores_by_age(system)
    if not stores:
        return {"store": otherwise, "credentials": None}
    store = await chosen_store(session, stores)
    if store is None:
        raise NoStore(
            "No journal store lies where the tenant's data may be.",
            hint="Add a store in one of the tenant's territories.",
        )
    access = await access_of(session, store, sealer) if store.wall == "shared" else None
    if access is None or access.access_key_id is None:
        return {"store": store.url, "credentials": None}
    return {
        "store": store.url,
        "credentials": {field: getattr(access, field) for field in _CREDENTIAL},
    }
