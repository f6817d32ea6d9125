"""One tenant's restores behind a data node's door, from the tenant's record.

It holds no key of its own: each visit brings one in its ticket, for as long as it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from host_agent.wire.restoring import ALPN
from host_agent.wire.serving import ServingRecord
from workers.ingest.decide import Peer, Rules, authorise_peer, check_validity
from workers.ingest.door import GRACE_SECONDS, credentials_of
from workers.ingest.errors import BadConfig, SessionEnded
from workers.ingest.log import Log
from workers.ingest.tls import ServerIdentity, peer_of
from workers.restore.admission import Believed
from workers.restore.tls import restore_context, shown_by
from workers.restore.visit import DoorTools, Visit
from workers.storage.port import ObjectStore
from workers.storage.url import open_store
from workers.supervisor.port import Service, ServiceStart

#: Each holds a journal's map and some 100 MiB of what is read ahead.
RESTORES_MAX = 4
_THREADS = 8
_HANDSHAKE_SECONDS_MAX = 5.0
_STOP_SECONDS_MAX = 3.0
#: Identities of this process whose tickets may still be shown.
_KEYS_KEPT = 3


async def open_service(start: ServiceStart) -> Service:
    """Begin. BadConfig, StoreError: it cannot, and may be tried again."""
    context = restore_context(start.identity, start.record.intermediate)
    access = start.record.store
    opened = partial(open_store, access.url, credentials=credentials_of(access))
    store = await asyncio.to_thread(opened)
    return TenantRestores(start, context, store)


class TenantRestores:
    """See workers.supervisor.port.Service."""

    def __init__(self, start: ServiceStart, context: ssl.SSLContext, store: ObjectStore) -> None:
        self._context = context
        self._log: Log = start.log
        self._keys = [_key_of(start.identity)]
        self._record = start.record
        self._executor = ThreadPoolExecutor(_THREADS, "holdfast-restore")
        self._tools = DoorTools(
            believed=self._believed(),
            store=store,
            executor=self._executor,
            restores=asyncio.Semaphore(RESTORES_MAX),
            wall=time.time,
            log=start.log,
        )
        self._visits: dict[asyncio.Task[None], Visit | None] = {}

    def take(self, connected: socket.socket, address: str) -> None:
        if len(self._visits) >= self._record.quotas.connections_max:
            connected.close()
            return
        task = asyncio.create_task(self._serve(connected, address))
        self._visits[task] = None
        task.add_done_callback(self._visits.pop)

    def change(self, record: ServingRecord) -> None:
        self._record = record
        self._tools.believed = self._believed()
        for task, visit in self._visits.items():
            if visit is not None and visit.peer.host in record.denied:
                self._log.warning("restore_put_out", host=visit.peer.host)
                task.cancel()

    def renew(self, identity: ServerIdentity) -> None:
        self._context = restore_context(identity, self._record.intermediate)
        self._keys = [_key_of(identity), *self._keys][:_KEYS_KEPT]
        self._tools.believed = self._believed()

    def status(self) -> dict[str, object]:
        return {"connections": len(self._visits), **vars(self._tools.figures)}

    def facts(self) -> list[dict[str, object]]:
        return []

    async def stop(self) -> None:
        # A host that restores goes on at another data node, or here when it is back.
        tasks = list(self._visits)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_SECONDS_MAX)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _believed(self) -> Believed:
        authority = x509.load_pem_x509_certificate(self._record.intermediate.encode())
        return Believed(self._record.tenant, authority, tuple(self._keys))

    async def _serve(self, connected: socket.socket, address: str) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        self._tools.figures.visits += 1
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connected,
                ssl=self._context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS_MAX,
                ssl_shutdown_timeout=_STOP_SECONDS_MAX,
            )
        except (OSError, TimeoutError) as error:
            self._log.warning("handshake_failed", address=address, reason=type(error).__name__)
            connected.close()
            return
        try:
            peer = self._admitted(transport, address)
            if peer is not None:
                streams = (reader, asyncio.StreamWriter(transport, protocol, reader, loop))
                await self._visit(Visit(peer, streams, self._tools))
        finally:
            transport.abort()

    async def _visit(self, visit: Visit) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits[task] = visit
        with contextlib.suppress(OSError):
            await visit.run()

    def _admitted(self, transport: asyncio.Transport, address: str) -> Peer | None:
        """Who came, if it may speak at all; None refuses it without a word."""
        denied = frozenset(self._record.denied)
        rules = Rules(self._record.tenant, None, 0, 0, denied, GRACE_SECONDS)
        try:
            peer = peer_of(shown_by(transport.get_extra_info("ssl_object")), address, ALPN)
            authorise_peer(peer, rules)
            check_validity(peer, rules, self._tools.wall())
        except SessionEnded as refused:
            self._tools.figures.refused += 1
            self._log.warning("peer_refused", address=address, reason=refused.message)
            return None
        return peer


def _key_of(identity: ServerIdentity) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(identity.key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadConfig("The restore service's key is not of P-256.")
    return key
