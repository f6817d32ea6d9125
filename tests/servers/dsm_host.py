"""A host at the control door, simulated: it keeps the contract of FORMAT.md 11 and no disk."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from host_agent.wire import control
from host_agent.wire.control import (
    Answer,
    Assignment,
    AssignmentPush,
    Command,
    Failure,
    FoundDisk,
    FoundMachine,
    FromHost,
    GroupFacts,
    Heartbeat,
    Hello,
    Inventory,
    PathSource,
    Welcome,
)

GENERATION = "ab" * 16
DIGEST = "cd" * 32
Door = tuple[str, int]


@dataclass(frozen=True)
class HostFiles:
    """PEM: its certificate with the intermediate and its key; the root."""

    identity: Path
    root: Path


def client_tls(files: HostFiles) -> ssl.SSLContext:
    """As an agent calls."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(files.root)
    context.load_cert_chain(files.identity)
    return context


@dataclass(frozen=True)
class Obeyed:
    """A command that was accepted: when (monotonic seconds), by which manager, what."""

    at: float
    epoch: int
    number: int
    kind: str
    body: Any


@dataclass
class Keeping:
    """What a host has on its disk."""

    epoch: int = 0
    number: int = 0
    assignment: Assignment | None = None

    def takes(self, epoch: int, number: int) -> bool:
        """Whether a command may be obeyed; then it is the highest."""
        if (epoch, number) <= (self.epoch, self.number):
            return False
        self.epoch, self.number = epoch, number
        return True


@dataclass
class SimulatedHost:
    """Dials the doors in turn until closed. Positions grow by one with each checkpoint."""

    doors: Sequence[Door]
    tls: ssl.SSLContext
    keeping: Keeping = field(default_factory=Keeping)
    machines: list[FoundMachine] = field(default_factory=list)
    on_obeyed: Callable[[Obeyed], None] = lambda _: None
    retry_seconds: float = 0.1
    answers: bool = True
    checks_epoch: bool = True
    obeyed: list[Obeyed] = field(default_factory=list)
    refused: list[tuple[int, int]] = field(default_factory=list)
    welcomes: list[Welcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    taken: list[tuple[int, int]] = field(default_factory=list)
    gap_reason: str | None = None
    seq: int = 0
    connection: ClientConnection | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Until cancelled."""
        turn = 0
        while True:
            host, port = self.doors[turn % len(self.doors)]
            turn += 1
            try:
                await self.session(host, port)
            except (OSError, WebSocketException, TimeoutError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self._tell()
            await asyncio.sleep(self.retry_seconds)

    async def session(self, host: str, port: int) -> None:
        """One connection, to its end."""
        async with connect(
            f"wss://{host}:{port}{control.PATH}",
            ssl=self.tls,
            server_hostname="localhost",
            subprotocols=[Subprotocol(control.SUBPROTOCOL)],
            compression=None,
            proxy=None,
            ping_interval=None,
            open_timeout=20,
            close_timeout=1,
        ) as connection:
            self.connection = connection
            kept = self.keeping
            version = kept.assignment.version if kept.assignment else 0
            await self.say(Hello("1.0", kept.epoch, kept.number, version, time.time_ns()))
            beating: asyncio.Task[None] | None = None
            try:
                async for text in connection:
                    message = control.decode_from_manager(text)
                    if isinstance(message, Welcome):
                        self.welcomes.append(message)
                        if self.machines and message.inventory != DIGEST:
                            await self.say(Inventory(DIGEST, self.machines))
                        if beating is None:
                            seconds = message.heartbeat_seconds
                            beating = asyncio.create_task(self._beat(seconds))
                    elif isinstance(message, Command):
                        await self._obey(message)
                    elif isinstance(message, AssignmentPush):
                        await self._keep(message)
                    elif isinstance(message, control.Taken):
                        self.taken.append((message.epoch, message.number))
                    self._tell()
            finally:
                self.connection = None
                if beating is not None:
                    beating.cancel()
                    await asyncio.gather(beating, return_exceptions=True)

    async def say(self, message: FromHost) -> None:
        """Send it on the connection that there is."""
        if self.connection is not None:
            await self.connection.send(control.encode(message))

    async def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for it; TimeoutError."""
        async with asyncio.timeout(seconds):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    def _tell(self) -> None:
        self.changed.set()

    async def _beat(self, seconds: float) -> None:
        with contextlib.suppress(WebSocketException):
            while True:
                await self.beat()
                await asyncio.sleep(seconds)

    async def beat(self) -> None:
        """One heartbeat: all that was marked is stored."""
        await self.say(Heartbeat(time.time_ns(), "up", self.facts()))

    def facts(self) -> list[GroupFacts]:
        """Of the groups of its assignment."""
        groups = self.keeping.assignment.groups if self.keeping.assignment else []
        return [
            GroupFacts(
                vpg=group.vpg,
                phase="streaming",
                sync="in_sync",
                generation=GENERATION,
                received_seq=self.seq,
                stored_seq=self.seq,
                stored_source_time_ns=time.time_ns(),
                backlog_bytes=0,
                write_bytes_per_second=0,
                gap_reason=self.gap_reason,
            )
            for group in groups
        ]

    async def _obey(self, message: Command) -> None:
        if not self._takes(message.epoch, message.number):
            await self._refuse(message.epoch, message.number)
            return
        body = control.body_of(message)
        obeyed = Obeyed(time.monotonic(), message.epoch, message.number, message.kind, body)
        self.obeyed.append(obeyed)
        self.on_obeyed(obeyed)
        result: dict[str, Any] = {}
        if isinstance(body, control.Checkpoint):
            self.seq += 1
            result = {"generation": GENERATION, "seq": self.seq, "source_time_ns": time.time_ns()}
        if self.answers:
            await self.say(Answer(message.epoch, message.number, "done", result))

    async def _keep(self, message: AssignmentPush) -> None:
        if not self._takes(message.epoch, message.number):
            await self._refuse(message.epoch, message.number)
            return
        self.keeping.assignment = message.assignment
        await self.say(Answer(message.epoch, message.number, "done"))
        await self.beat()

    def _takes(self, epoch: int, number: int) -> bool:
        return self.keeping.takes(epoch, number) or not self.checks_epoch

    async def _refuse(self, epoch: int, number: int) -> None:
        self.refused.append((epoch, number))
        stale = Failure("epoch_stale", "Another manager commands this host.")
        await self.say(Answer(epoch, number, "failed", error=stale))


def machine(name: str, *disks: str) -> FoundMachine:
    """A machine with disks of 1 GiB."""
    found = [FoundDisk(disk, PathSource(f"/disks/{name}.{disk}"), 1 << 30) for disk in disks]
    return FoundMachine(name, found)


def as_json(message: FromHost) -> dict[str, Any]:
    """For tests that send what the codec would not."""
    plain: dict[str, Any] = msgspec.json.decode(control.encode(message))
    return plain
