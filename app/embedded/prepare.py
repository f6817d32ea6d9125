"""What has to be there before the service's processes start, made by a process that then ends.

Prints one JSON object: what was prepared, or the error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import URL, create_engine, insert, select, text

from app.database.migrate import prepare_database, upgrade
from app.database.sessions import Database
from app.datanodes.schemas import DataNodeInput, JournalStoreInput
from app.datanodes.service import create_node, invite_node, list_nodes
from app.datanodes.stores import DEFAULT_STORE, create_store, list_stores
from app.datanodes.tokens import join_text
from app.embedded.folder import Folder, write_private
from app.embedded.postgres import DATABASE, Postgres
from app.embedded.trust import root_of, sealer_of, write_server_file
from app.events.ledger import Circumstances
from app.http.unit import ProviderUnit, Tools
from app.identity.principals import Principal
from app.identity.tokens import make_token
from app.kit.clock import SystemClock
from app.kit.ids import new_uuid
from app.kit.sealing import Sealer
from app.models import ProviderKey
from host_agent.wire.errors import HoldfastError

FIRST_KEY = "first provider"
_ACTOR, _NODE = "holdfast up", "local"


@dataclass(frozen=True)
class Wanted:
    """The API's names, where the data node listens, and under whose law all of it is."""

    names: list[str]
    data_door: str
    territory: str


def prepare(folder: Folder, wanted: Wanted) -> dict[str, Any]:
    """Secret, root, certificate, schema, first key, a data node that may join. The private
    database runs. HoldfastError.
    """
    now = SystemClock().now()
    sealer, root = sealer_of(folder), root_of(folder, now)
    write_server_file(folder, root, wanted.names, now)
    url = _ready_database(Postgres(folder.postgres))
    folder.used.touch()
    token = asyncio.run(first_provider_key(url, sealer))
    if not node_has_joined(folder):
        asyncio.run(
            _let_node_join(folder, Tools(Database(url), sealer, SystemClock(), root), wanted)
        )
    return {
        "database_url": url.render_as_string(hide_password=False),
        "root_sha256": root.fingerprint,
        "provider_token": token,
    }


def _ready_database(server: Postgres) -> URL:
    engine = create_engine(server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        wanted = {"name": DATABASE}
        found = connection.execute(
            text("SELECT 1 FROM pg_database WHERE datname = :name"), wanted
        ).first()
        if found is None:
            connection.execute(text(f"CREATE DATABASE {DATABASE}"))
    engine.dispose()
    url = server.url()
    prepare_database(url)
    upgrade(url)
    return url


async def first_provider_key(url: URL, sealer: Sealer) -> str | None:
    """The first key of the provider's staff, once."""
    database = Database(url)
    try:
        async with database.provider() as session:
            if (await session.orm.execute(select(ProviderKey.id).limit(1))).first():
                return None
            now = SystemClock().now()
            token = make_token(None, new_uuid(now))
            row = {"id": token.id, "name": FIRST_KEY, "created_at": now}
            values = {**row, "fingerprint": token.fingerprint(sealer)}
            await session.orm.execute(insert(ProviderKey).values(**values))
            await session.commit()
        return token.text
    finally:
        await database.close()


def node_has_joined(folder: Folder) -> bool:
    """Whether the data node has an identity of its own."""
    return (folder.data_node / "node.pem").exists()


async def _let_node_join(folder: Folder, tools: Tools, wanted: Wanted) -> None:
    """The store in the folder and the one data node, made if absent; a token in a file of 0600."""
    now = tools.clock.now()
    principal = Principal(None, UUID(int=0), _ACTOR, frozenset())
    by = Circumstances(_ACTOR, "", "", now)
    try:
        async with tools.database.provider() as session:
            unit = ProviderUnit(session, principal, tools, by)
            if not await list_stores(session):
                store = {"name": DEFAULT_STORE, "url": folder.store_url, "wall": "folder"}
                await create_store(
                    unit,
                    JournalStoreInput(**store, territory=wanted.territory),  # type: ignore[arg-type]
                )
            nodes = await list_nodes(session)
            if nodes:
                token = invite_node(unit, nodes[0])
            else:
                node = DataNodeInput(
                    name=_NODE, territory=wanted.territory, doors=[wanted.data_door]
                )
                _, token = await create_node(unit, node)
            await session.commit()
    finally:
        await tools.database.close()
    folder.data_node_token.unlink(missing_ok=True)
    write_private(folder.data_node_token, f"{join_text(token, tools.root.fingerprint)}\n".encode())


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data-door", required=True)
    parser.add_argument("--territory", required=True)
    parser.add_argument("--names", nargs="+", required=True)
    told = parser.parse_args()
    wanted = Wanted(told.names, told.data_door, told.territory)
    try:
        print(json.dumps(prepare(Folder(told.directory), wanted)))
    except HoldfastError as error:
        print(json.dumps({"error": error.code, "message": error.message, "hint": error.hint}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
