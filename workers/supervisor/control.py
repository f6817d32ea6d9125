"""A data node's connection to its manager: records come down, certificates and facts go up.

It is never needed: while nobody answers, the node goes on with what it keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from host_agent.wire import control, limits
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.nodecontrol import (
    CertificateRequest,
    FromNode,
    NodeCertificate,
    NodeFacts,
    NodeHello,
    NodeWelcome,
    Records,
    Service,
    StreamFacts,
    decode_from_manager,
)
from workers.ingest.log import Log
from workers.supervisor.identity import (
    NewKey,
    NodeIdentity,
    keep_identity,
    make_key,
    renewal_of,
)
from workers.supervisor.node import Key, Node
from workers.supervisor.record import KeptIdentity

_BACKOFF_SECONDS_MIN, _BACKOFF_SECONDS_MAX = 0.5, 30.0
_WELCOME_SECONDS_MAX = 20.0
#: Certificates are looked at so often; what a record asks for is asked for at once.
_LOOK_SECONDS = 60.0
_ASKED_SECONDS_MAX = 30.0
_SILENT_SECONDS_MAX = 20.0


@dataclass
class Asked:
    """A certificate request under way; `about` None: the node's own."""

    about: Key | None
    key: NewKey
    at: float


@dataclass
class ControlClient:
    """Keeps one connection to the first manager that answers, for ever."""

    doors: Sequence[tuple[str, int]]
    identity: NodeIdentity
    node: Node
    log: Log
    rng: random.Random = field(default_factory=random.SystemRandom)
    state: str = "connecting"
    last_error: str | None = None

    def __post_init__(self) -> None:
        self._changed: dict[tuple[str, str, str], StreamFacts] = {}
        self._wanted = asyncio.Event()
        self._asked: dict[int, Asked] = {}
        self._number = 0
        self._facts_seconds = 5.0
        self.node.on_facts = self._note
        self.node.on_wanted = self._wanted.set

    def as_dict(self) -> dict[str, object]:
        """For `status`."""
        return {"state": self.state, "last_error": self.last_error}

    async def run(self) -> None:
        """Until it is cancelled."""
        tries = 0
        while True:
            host, port = self.doors[tries % len(self.doors)]
            began = time.monotonic()
            try:
                await self._connected(host, port)
            except (OSError, TimeoutError, WebSocketException, HoldfastError) as error:
                self.last_error = f"{host}:{port}: {error}"
            self.state = "away"
            tries = 0 if time.monotonic() - began > _BACKOFF_SECONDS_MAX else tries + 1
            wait = min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS_MIN * 2 ** min(tries, 10))
            self.log.warning("control_away", door=f"{host}:{port}", message=self.last_error)
            await asyncio.sleep(wait * (0.5 + self.rng.random() / 2))

    async def _connected(self, host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        async with connect(
            f"wss://{shown}:{port}{control.PATH}",
            ssl=self.identity.context(),
            subprotocols=[control.SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
            max_size=limits.CONTROL_MESSAGE_BYTES_MAX,
            compression=None,
            open_timeout=_WELCOME_SECONDS_MAX,
            ping_interval=_SILENT_SECONDS_MAX,
            ping_timeout=_SILENT_SECONDS_MAX,
            user_agent_header=None,
        ) as line:
            hello = NodeHello(version("holdfast"), time.time_ns(), self.node.versions())
            await _say(line, hello)
            await self._welcomed(line)
            self._asked.clear()
            self._note(self.node.all_facts())
            self._wanted.set()
            self.state, self.last_error = "connected", None
            self.log.info("control_connected", door=f"{host}:{port}")
            await self._live(line)

    async def _welcomed(self, line: ClientConnection) -> None:
        async with asyncio.timeout(_WELCOME_SECONDS_MAX):
            message = decode_from_manager(await line.recv())
        if not isinstance(message, NodeWelcome):
            raise WireError("A manager begins with node_welcome.")
        self._facts_seconds = message.facts_seconds

    async def _live(self, line: ClientConnection) -> None:
        parts = [self._hear(line), self._ask(line), self._tell(line)]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    # --- down

    async def _hear(self, line: ClientConnection) -> None:
        async for text in line:
            message = decode_from_manager(text)
            if isinstance(message, Records):
                for one in message.records:
                    self.node.take_record(one)
                    await asyncio.sleep(0)  # each waits for the disk; others have their turn
                self.node.serve_only(message.tenants)
                self._wanted.set()
            elif isinstance(message, NodeCertificate):
                self._take_certificate(message)

    def _take_certificate(self, message: NodeCertificate) -> None:
        asked = self._asked.pop(message.request, None)
        if asked is None:
            return
        if message.certificate is None:
            code = message.error.code if message.error else "refused"
            self.log.warning("certificate_refused", about=asked.about, code=code)
            return
        try:
            if asked.about is None:
                directory = self.identity.directory
                self.identity = keep_identity(directory, message.certificate, asked.key)
            else:
                renew_at = renewal_of(message.certificate).timestamp()
                kept = KeptIdentity(message.certificate, asked.key.private, renew_at)
                self.node.take_identity(asked.about, kept)
        except (OSError, ValueError) as error:
            self.log.warning("certificate_not_kept", about=asked.about, message=error)

    # --- up

    async def _ask(self, line: ClientConnection) -> None:
        while True:
            self._wanted.clear()
            now = time.time()
            self._asked = {
                number: asked
                for number, asked in self._asked.items()
                if now - asked.at < _ASKED_SECONDS_MAX
            }
            pending = {asked.about for asked in self._asked.values()}
            wanted: list[Key | None] = list(self.node.identities_wanted(now))
            if now >= self.identity.renew_at.timestamp():
                wanted.append(None)
            for about in wanted:
                if about not in pending:
                    await self._ask_one(line, about, now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wanted.wait()

    async def _ask_one(self, line: ClientConnection, about: Key | None, now: float) -> None:
        self._number += 1
        key = make_key()
        self._asked[self._number] = Asked(about, key, now)
        request = CertificateRequest(self._number, key.request)
        if about is not None:
            tenant, service = about[0], cast("Service", about[1])
            request = CertificateRequest(self._number, key.request, tenant, service)
        await _say(line, request)

    def _note(self, facts: Sequence[StreamFacts]) -> None:
        for one in facts:
            self._changed[one.tenant, one.vpg, one.host] = one

    async def _tell(self, line: ClientConnection) -> None:
        while True:
            changed, self._changed = list(self._changed.values()), {}
            for start in range(0, len(changed), limits.FACTS_STREAMS_MAX):
                part = changed[start : start + limits.FACTS_STREAMS_MAX]
                await _say(line, NodeFacts(time.time_ns(), part))
            await asyncio.sleep(self._facts_seconds)


async def _say(line: ClientConnection, message: FromNode) -> None:
    await line.send(control.encode(message))
