"""The key service as other processes see it: calls over its Unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec

from app.keys.messages import (
    Answer,
    AnyRequest,
    ExportTenantKey,
    Health,
    IssueDataKey,
    MakeTenantKey,
    NewGroupKey,
    SealForRestore,
    SealGroupKey,
    problem_of,
    read_message,
    write_message,
)
from app.keys.port import KeyServiceAway, Recipient, RestoreProcess, WrappedKey
from host_agent.wire.errors import WireError
from host_agent.wire.keyrequest import DataKeyAnswer, DataKeyRequest
from host_agent.wire.ticket import DoorKey

_T = TypeVar("_T")
_CALL_SECONDS_MAX = 10.0


class SocketKeys:
    """The port over a socket. A connection a call: calls are rare, and none outlives its loop."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def is_up(self) -> bool:
        """Whether the service answers."""
        try:
            await self._call(Health(), dict[str, str])
        except KeyServiceAway:
            return False
        return True

    async def make_tenant_key(self, tenant: str) -> str:
        return await self._call(MakeTenantKey(tenant), str)

    async def new_group_key(self, tenant: str, vpg: str, tenant_key_id: str) -> WrappedKey:
        return await self._call(NewGroupKey(tenant, vpg, tenant_key_id), WrappedKey)

    async def issue_data_key(
        self, request: DataKeyRequest, wrapped: WrappedKey, denied: frozenset[str]
    ) -> DataKeyAnswer:
        return await self._call(IssueDataKey(request, wrapped, sorted(denied)), DataKeyAnswer)

    async def seal_group_key(self, wrapped: WrappedKey, ticket: str, to: Recipient) -> bytes:
        return await self._call(SealGroupKey(wrapped, ticket, to.public_key, to.reason), bytes)

    async def seal_for_restore(
        self, wrapped: WrappedKey, ticket: str, to: RestoreProcess
    ) -> DoorKey:
        return await self._call(SealForRestore(wrapped, ticket, to.chain, to.reason), DoorKey)

    async def export_tenant_key(self, tenant: str, to: Recipient) -> bytes:
        return await self._call(ExportTenantKey(tenant, to.public_key, to.reason), bytes)

    async def _call(self, request: AnyRequest, kind: type[_T]) -> _T:
        try:
            data = await asyncio.wait_for(self._exchange(request), _CALL_SECONDS_MAX)
            answer = msgspec.json.decode(data, type=Answer)
            if answer.refusal is not None:
                raise problem_of(answer.refusal)
            return msgspec.json.decode(answer.done, type=kind)
        except (
            OSError,
            EOFError,
            TimeoutError,
            WireError,
            msgspec.DecodeError,
            UnicodeError,
        ) as error:
            why = str(error) or "it takes too long"
            raise KeyServiceAway(
                f"The key service at {self._path} does not answer: {why}.",
                hint="Start `holdfast keys`, then try again.",
            ) from None

    async def _exchange(self, request: AnyRequest) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            await write_message(writer, request)
            return await read_message(reader)
        finally:
            writer.close()
