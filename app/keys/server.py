"""A key service behind a Unix socket. Who may ask is decided by the kernel's word on who calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter

from app.keys.messages import (
    Answer,
    AnyRequest,
    ExportTenantKey,
    Health,
    IssueDataKey,
    MakeTenantKey,
    NewGroupKey,
    Refusal,
    SealForRestore,
    SealGroupKey,
    read_message,
    refusal_of,
    write_message,
)
from app.keys.port import KeyRefused, KeyService, Recipient, RestoreProcess
from host_agent.wire.errors import HoldfastError

_log = logging.getLogger(__name__)
#: Whoever connects says what it wants within this time, seconds.
_IDLE_SECONDS = 30.0
_CONNECTIONS_MAX = 256
_PEER = struct.Struct("iII")


class KeyServer:
    """Answers the users that it was told of, and nobody else."""

    def __init__(self, keys: KeyService, users: frozenset[int]) -> None:
        self._keys, self._users = keys, users
        self._connections = 0
        self._is_serving = False
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "holdfast_keys_answers",
            "Requests by what they asked and how they were answered.",
            ["asked", "outcome"],
            registry=self.registry,
        )

    async def is_ready(self) -> bool:
        """Whether it listens."""
        return self._is_serving

    @contextlib.asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        """Listen on a socket of this path until the block ends. What lay there is replaced."""
        server = await asyncio.start_unix_server(self._connected, sock=self._listener(path))
        self._is_serving = True
        try:
            yield
        finally:
            self._is_serving = False
            server.close()

    def _listener(self, path: Path) -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        # With other users than ours the mode cannot tell them apart: the kernel's word does.
        path.chmod(0o600 if self._users <= {os.geteuid()} else 0o666)
        return listener

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            pid, user = _peer(writer)
            if user not in self._users or self._connections > _CONNECTIONS_MAX:
                _log.warning("refused", extra={"peer_pid": pid, "peer_user": user})
                return
            await self._converse(reader, writer)
        except (OSError, EOFError, TimeoutError):
            return
        except HoldfastError as error:
            with contextlib.suppress(OSError):
                await write_message(writer, Answer(refusal=refusal_of(error)))
        finally:
            self._connections -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await asyncio.wait_for(read_message(reader), _IDLE_SECONDS)
            await write_message(writer, await self._answer(data))

    async def _answer(self, data: bytes) -> Answer:
        asked, outcome = "nothing", "done"
        try:
            request = msgspec.json.decode(data, type=AnyRequest)
            asked = type(request).__name__
            done = await self._do(request)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            answer, outcome = Answer(refusal=_refused(str(error))), "malformed"
        except HoldfastError as error:
            answer, outcome = Answer(refusal=refusal_of(error)), error.code
        else:
            answer = Answer(done=msgspec.Raw(msgspec.json.encode(done)))
        self._answers.labels(asked, outcome).inc()
        return answer

    async def _do(self, request: AnyRequest) -> Any:
        keys = self._keys
        match request:
            case Health():
                return {}
            case MakeTenantKey(tenant):
                return await keys.make_tenant_key(tenant)
            case NewGroupKey(tenant, vpg, tenant_key_id):
                return await keys.new_group_key(tenant, vpg, tenant_key_id)
            case IssueDataKey(asked, wrapped, denied):
                return await keys.issue_data_key(asked, wrapped, frozenset(denied))
            case SealGroupKey(wrapped, ticket, public_key, reason):
                return await keys.seal_group_key(wrapped, ticket, Recipient(public_key, reason))
            case SealForRestore(wrapped, ticket, chain, reason):
                return await keys.seal_for_restore(wrapped, ticket, RestoreProcess(chain, reason))
            case ExportTenantKey(tenant, public_key, reason):
                return await keys.export_tenant_key(tenant, Recipient(public_key, reason))


def _refused(why: str) -> Refusal:
    return refusal_of(KeyRefused(f"This is no request: {why}."))


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """(process id, user id) of who connected, as the kernel noted them then."""
    connected: socket.socket = writer.get_extra_info("socket")
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, user, _group = _PEER.unpack(packed)
    return pid, user
