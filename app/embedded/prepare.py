"""What has to be there before the service's processes start, made by a process that then ends.

Reads a line when the database is ready. Prints one JSON object: what was prepared, or the error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, insert, select, text, update

from app.database.migrate import prepare_database, upgrade
from app.database.sessions import Database
from app.embedded.folder import LOCAL_NODE, Folder
from app.embedded.postgres import DATABASE, Postgres
from app.embedded.trust import root_of, sealer_of, write_server_file
from app.identity.tokens import make_token
from app.kit.clock import SystemClock
from app.kit.ids import new_uuid
from app.kit.sealing import Sealer
from app.models import DataNode, ProviderKey
from host_agent.wire.errors import HoldfastError

FIRST_KEY = "first provider"


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
        # Only a first start needs what makes one, and waits for its imports.
        from app.embedded.joining import let_node_join

        asyncio.run(let_node_join(folder, url, wanted.data_door, wanted.territory))
    else:
        asyncio.run(_note_door(url, wanted.data_door))
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


async def _note_door(url: URL, door: str) -> None:
    """The data node listens where it was told this time."""
    database = Database(url)
    try:
        async with database.provider() as session:
            change = update(DataNode).where(DataNode.name == LOCAL_NODE).values(doors=[door])
            await session.orm.execute(change)
            await session.commit()
    finally:
        await database.close()


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data-door", required=True)
    parser.add_argument("--territory", required=True)
    parser.add_argument("--names", nargs="+", required=True)
    told = parser.parse_args()
    wanted = Wanted(told.names, told.data_door, told.territory)
    sys.stdin.readline()  # the database is ready
    try:
        print(json.dumps(prepare(Folder(told.directory), wanted)))
    except HoldfastError as error:
        print(json.dumps({"error": error.code, "message": error.message, "hint": error.hint}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
