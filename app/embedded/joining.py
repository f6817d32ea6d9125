"""The one data node of an installation on one machine, and its store: entered, for it to join."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import URL

from app.database.sessions import Database
from app.datanodes.schemas import DEFAULT_STORE, DataNodeInput, JournalStoreInput
from app.datanodes.service import create_node, invite_node, list_nodes
from app.datanodes.stores import create_store, list_stores
from app.datanodes.tokens import join_text
from app.embedded.folder import LOCAL_NODE, Folder, write_private
from app.embedded.trust import root_of, sealer_of
from app.events.ledger import Circumstances
from app.http.unit import ProviderUnit, Tools
from app.identity.principals import Principal
from app.identity.tokens import Token
from app.kit.clock import SystemClock

_ACTOR = "holdfast up"


async def let_node_join(folder: Folder, url: URL, door: str, territory: str) -> None:
    """The store in the folder and the one data node, made if absent; a token in a file of 0600."""
    clock = SystemClock()
    root = root_of(folder, clock.now())
    tools = Tools(Database(url), sealer_of(folder), clock, root)
    principal = Principal(None, UUID(int=0), _ACTOR, frozenset())
    by = Circumstances(_ACTOR, "", "", clock.now())
    try:
        async with tools.database.provider() as session:
            unit = ProviderUnit(session, principal, tools, by)
            if not await list_stores(session):
                store = {"name": DEFAULT_STORE, "url": folder.store_url, "wall": "folder"}
                wanted = JournalStoreInput(**store, territory=territory)  # type: ignore[arg-type]
                await create_store(unit, wanted)
            token = await _token(unit, door, territory)
            await session.commit()
    finally:
        await tools.database.close()
    folder.data_node_token.unlink(missing_ok=True)
    write_private(folder.data_node_token, f"{join_text(token, root.fingerprint)}\n".encode())


async def _token(unit: ProviderUnit, door: str, territory: str) -> Token:
    nodes = await list_nodes(unit.session)
    if nodes:
        nodes[0].doors = [door]
        return invite_node(unit, nodes[0])
    wanted = DataNodeInput(name=LOCAL_NODE, territory=territory, doors=[door])
    _, token = await create_node(unit, wanted)
    return token
