"""The data node and the store of an installation on one machine, made without anybody's asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from app.database.sessions import Database, ProviderSession
from app.datanodes.schemas import JOIN_SECONDS_MAX
from app.datanodes.stores import DEFAULT_STORE
from app.datanodes.tokens import join_text
from app.identity.tokens import make_token
from app.kit.ids import new_uuid
from app.kit.sealing import Sealer
from app.models import DataNode, JournalStore
from app.models.datanodes import NodeState

NAME = "this machine"
#: Of one machine nobody needs to know more; a tenant that may not be there needs another node.
TERRITORY = "ZZ"


@dataclass(frozen=True)
class OwnNode:
    """How the node is reached, where journals lie, and whether it has joined already."""

    doors: Sequence[str]
    store_url: str
    has_joined: bool
    root_fingerprint: str


async def prepare_own_node(
    database: Database, sealer: Sealer, own: OwnNode, now: datetime
) -> str | None:
    """Have the store and the node in the database; the join token of a node that has still to
    join, else None. May be repeated.
    """
    async with database.provider() as session:
        await _ensure_store(session, own.store_url, now)
        node = await _ensure_node(session, own, now)
        token = None
        if not own.has_joined:
            token = make_token(None, node.id)
            node.join_fingerprint = token.fingerprint(sealer)
            node.join_expires_at = now + timedelta(seconds=JOIN_SECONDS_MAX)
        await session.commit()
    return None if token is None else join_text(token, own.root_fingerprint)


async def _ensure_store(session: ProviderSession, url: str, now: datetime) -> None:
    found = await session.orm.scalar(
        select(JournalStore.id).where(JournalStore.name == DEFAULT_STORE)
    )
    if found is None:
        wall = "folder" if url.startswith("file:") else "static"
        session.orm.add(
            JournalStore(
                id=new_uuid(now),
                name=DEFAULT_STORE,
                territory=TERRITORY,
                url=url,
                wall=wall,
                sealed_credential=None,
                created_at=now,
                version=1,
            )
        )


async def _ensure_node(session: ProviderSession, own: OwnNode, now: datetime) -> DataNode:
    found = await session.orm.scalars(select(DataNode).where(DataNode.name == NAME))
    node = found.one_or_none()
    if node is None:
        node = DataNode(
            id=new_uuid(now),
            name=NAME,
            territory=TERRITORY,
            doors=list(own.doors),
            state=NodeState.JOINING,
            agent_version="",
            created_at=now,
            version=1,
        )
        session.orm.add(node)
    node.doors = list(own.doors)
    return node


def token_file(directory: Path) -> Path:
    """Where the data node of this folder finds its join token."""
    return directory / "join.token"
