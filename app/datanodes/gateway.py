"""Data nodes at the control door: who they are, what they are told, what they say.

Any manager process may hold a node's connection. What a node is told of a tenant comes from rows
and carries their number, so that two that tell it at once do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from sqlalchemy import or_, update

from app.certificates.authority import (
    NODE_LIFETIME,
    Authority,
    key_of_request,
    pem_of,
    sign_door,
    sign_node,
)
from app.database.sessions import Database, SystemSession
from app.datanodes.loading import Versions, load_records, raise_above, record_versions
from app.datanodes.records import behind, stale
from app.datanodes.restoring import note_restore_door
from app.datanodes.service import load_node_authority
from app.hosts.enrolment import key_fingerprint
from app.kit.clock import Clock
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.models import DataNode
from app.models.datanodes import NodeState
from host_agent.wire import control, limits
from host_agent.wire.control import Failure, failure_of
from host_agent.wire.errors import BadName, HoldfastError, WireError
from host_agent.wire.names import RESTORE, datanode_san, parse_datanode_san, server_name
from host_agent.wire.nodecontrol import (
    CertificateRequest,
    FromManager,
    NodeCertificate,
    NodeFacts,
    NodeHello,
    NodeWelcome,
    Records,
    StreamFacts,
    TenantRecord,
    decode_from_node,
)

#: A tenant whose record changed is told of it within about so long.
POLL_SECONDS = 1.0
#: How often nodes tell what is stored: it is part of every RPO that is shown.
FACTS_SECONDS = 2.0
_HELLO_SECONDS_MAX = 10.0
_SEEN_EVERY = timedelta(minutes=1)
#: Records of one message: together under the door's limit whatever their size.
_RECORDS_BYTES_MAX = limits.CONTROL_MESSAGE_BYTES_MAX // 2


class NodeRefused(HoldfastError):
    """A data node that may not come in."""

    code = "not_admitted"


class Line(Protocol):
    """A connection of the control door. `receive` raises what ends it, or returns None."""

    async def send(self, text: str) -> None: ...

    async def receive(self) -> str | None: ...


@dataclass(frozen=True)
class NodeTools:
    """What the gateway works with. `on_facts` is given what a node says of its streams."""

    database: Database
    sealer: Sealer
    clock: Clock
    on_facts: Callable[[Sequence[StreamFacts]], None] = field(default=lambda _: None)


class NodeGateway:
    """For the control door: `admit`, then `serve`, for a certificate that names a data node."""

    def __init__(self, tools: NodeTools) -> None:
        self._tools = tools

    async def admit(self, leaf: x509.Certificate, uri: str) -> UUID:
        """Which data node shows this certificate; NodeRefused, Problem."""
        try:
            node_id = parse(Kind.DATA_NODE, parse_datanode_san(uri))
        except (BadName, BadId):
            raise _refused("its certificate names no data node") from None
        async with self._tools.database.system() as session:
            authority = await load_node_authority(session, self._tools.sealer)
            node = await session.orm.get(DataNode, node_id)
        if authority is None or node is None or node.state == NodeState.REVOKED:
            raise _refused("there is no such data node, or it is shut out")
        try:
            leaf.verify_directly_issued_by(authority.certificate)
        except (ValueError, TypeError, InvalidSignature):
            raise _refused("its certificate is not by the authority of data nodes") from None
        known = (node.key_fingerprint, node.previous_key_fingerprint)
        if key_fingerprint(leaf.public_key()) not in known:
            raise _refused("its key is older than its last renewal")
        return node_id

    async def serve(self, node_id: UUID, line: Line) -> None:
        """Serve a connection to its end; NodeRefused, WireError, Problem end it as well."""
        hello = await _hello(line)
        await _Connection(self._tools, node_id, line, hello).run()


async def _hello(line: Line) -> NodeHello:
    try:
        async with asyncio.timeout(_HELLO_SECONDS_MAX):
            text = await line.receive()
    except TimeoutError:
        raise WireError("No node_hello came in time.") from None
    message = None if text is None else decode_from_node(text)
    if not isinstance(message, NodeHello):
        raise WireError("A data node begins with node_hello.")
    return message


class _Connection:
    def __init__(self, tools: NodeTools, node_id: UUID, line: Line, hello: NodeHello) -> None:
        self._tools = tools
        self._node_id = node_id
        self._line = line
        self._hello = hello
        self._held: Versions = dict(hello.records)
        self._served: frozenset[str] | None = None
        self._seen_at: datetime | None = None

    async def run(self) -> None:
        welcome = NodeWelcome(FACTS_SECONDS, int(self._tools.clock.now().timestamp() * 1e9))
        await self._say(welcome)
        telling = asyncio.create_task(self._tell())
        hearing = asyncio.create_task(self._hear())
        try:
            await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (telling, hearing):
                task.cancel()
            results = await asyncio.gather(telling, hearing, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _say(self, message: FromManager) -> None:
        await self._line.send(control.encode(message))

    # --- down

    async def _tell(self) -> None:
        while True:
            try:
                await self._look()
            except Problem as problem:
                if problem.code != "database_unavailable":
                    raise  # else the node goes on with what it has
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self) -> None:
        tools = self._tools
        async with tools.database.system() as session:
            node = await session.orm.get_one(DataNode, self._node_id, populate_existing=True)
            if node.state == NodeState.REVOKED:
                raise _refused("it is shut out")
            await self._note_seen(session, node)
            current = await record_versions(session, node)
            await session.commit()
        for tenant in behind(self._held, current):
            current[tenant] = await raise_above(tools.database, tenant, self._held[tenant])
        await self._push(current)

    async def _push(self, current: Versions) -> None:
        tenants, served = stale(self._held, current), frozenset(current)
        batch: list[TenantRecord] = []
        length = 0
        for tenant in tenants:
            self._held[tenant] = current[tenant]  # also of one that has nothing to be told yet
        async for record in load_records(self._tools, tenants):
            encoded = msgspec.Raw(msgspec.json.encode(record))
            if batch and length + len(bytes(encoded)) > _RECORDS_BYTES_MAX:
                await self._say(Records(batch))
                batch, length = [], 0
            batch.append(TenantRecord(record.tenant, record.version, encoded))
            length += len(bytes(encoded))
            self._held[record.tenant] = record.version  # it may be newer than what was looked up
        changed = served != self._served
        if batch or changed:
            await self._say(Records(batch, sorted(served) if changed else None))
            self._served = served

    async def _note_seen(self, session: SystemSession, node: DataNode) -> None:
        now = self._tools.clock.now()
        if self._seen_at is None or now - self._seen_at >= _SEEN_EVERY:
            values = {"seen_at": now, "agent_version": self._hello.agent_version}
            await session.orm.execute(
                update(DataNode).where(DataNode.id == node.id).values(**values)
            )
            self._seen_at = now

    # --- up

    async def _hear(self) -> None:
        while (text := await self._line.receive()) is not None:
            message = decode_from_node(text)
            if isinstance(message, NodeFacts):
                self._tools.on_facts(
                    [one for one in message.streams if one.tenant in (self._served or ())]
                )
            elif isinstance(message, CertificateRequest):
                await self._say(await self._certify(message))

    async def _certify(self, request: CertificateRequest) -> NodeCertificate:
        try:
            pem = await self._sign(request)
        except Problem as problem:
            return NodeCertificate(request.request, error=failure_of(problem))
        if pem is None:
            error = Failure("not_served", "This node does not serve that.")
            return NodeCertificate(request.request, error=error)
        return NodeCertificate(request.request, pem)

    async def _sign(self, request: CertificateRequest) -> str | None:
        key = key_of_request(request.key_request)
        now = self._tools.clock.now()
        async with self._tools.database.system() as session:
            authority = await load_node_authority(session, self._tools.sealer)
            assert authority is not None
            if request.tenant is None:
                certificate = await self._renew(session, authority, request)
                await session.commit()
            elif request.service is None or request.tenant not in (self._served or ()):
                return None
            else:
                name = server_name(request.tenant, request.service)
                certificate = sign_door(authority, key, name, now)
        signed = pem_of(certificate) + authority.certificate_pem
        if request.tenant is not None and request.service == RESTORE:
            await self._note_restore_door(parse(Kind.TENANT, request.tenant), signed, now)
        return signed

    async def _note_restore_door(self, tenant_id: UUID, chain: str, now: datetime) -> None:
        async with self._tools.database.tenant(tenant_id) as session:
            await note_restore_door(session, self._node_id, chain, now)
            await session.commit()

    async def _renew(
        self, session: SystemSession, authority: Authority, request: CertificateRequest
    ) -> x509.Certificate:
        """The node's own: its newest key and the one before it may come in."""
        key, now = key_of_request(request.key_request), self._tools.clock.now()
        newest, table = key_fingerprint(key), DataNode
        await session.orm.execute(
            update(table)
            .where(
                table.id == self._node_id,
                table.state != NodeState.REVOKED,
                or_(table.key_fingerprint.is_(None), table.key_fingerprint != newest),
            )
            .values(
                previous_key_fingerprint=table.key_fingerprint,
                key_fingerprint=newest,
                certificate_expires_at=now + NODE_LIFETIME,
            )
        )
        return sign_node(authority, key, datanode_san(show(Kind.DATA_NODE, self._node_id)), now)


def _refused(why: str) -> NodeRefused:
    return NodeRefused(f"Refused: {why}.", hint="Invite the data node and let it join anew.")
