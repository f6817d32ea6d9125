"""The key service that keeps tenants' keys in files: what `holdfast keys` runs.

DIRECTORY/tenants/TENANT.key    a tenant's key file, mode 0600
DIRECTORY/denied/TENANT/HOST    a host that gets no key ever again
DIRECTORY/log.jsonl             each use of a key (`records`)
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from app.keys.chain import check_request, check_restore_process
from app.keys.port import (
    JOB_CONTEXT,
    RECOVERY_CONTEXT,
    KeyMissing,
    KeyProblem,
    KeyRefused,
    Recipient,
    RestoreProcess,
    WrappedKey,
)
from app.keys.records import Entry, KeyLog, entry_of
from app.kit.clock import Clock
from host_agent.wire.envelope import seal_to
from host_agent.wire.errors import BadKeyFile, HoldfastError
from host_agent.wire.keyrequest import DataKeyAnswer, DataKeyRequest, answer_to
from host_agent.wire.keys import (
    GroupKey,
    TenantKey,
    key_id,
    make_data_key,
    open_with_group,
    unwrap,
)
from host_agent.wire.names import check_name
from host_agent.wire.ticket import DoorKey, seal_group_key

_T = TypeVar("_T")
#: So many entries are flushed together: a failed flush fails so many calls.
_TOGETHER_MAX = 64


class KeysBusy(HoldfastError):
    """Another key service has the directory."""

    code = "keys_busy"


class LocalKeys:
    """The port's implementation; KeysBusy in a directory that another process has.

    Files are read and written on a thread, one call at a time, and no key is kept between calls.
    Calls that come while the log is flushed are written down together by the next flush.
    """

    def __init__(self, directory: Path, root: x509.Certificate, clock: Clock) -> None:
        self._directory, self._root, self._clock = directory, root, clock
        for folder in (directory, directory / "tenants", directory / "denied"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held = _hold(directory)
        self._log = KeyLog(directory / "log.jsonl")
        self._lock = asyncio.Lock()
        self._unwritten: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Let another process have the directory. Idempotent."""
        self._log.close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    async def _run(self, act: str, work: Callable[[], _T], **details: str) -> _T:
        """Do it and write down that it was done, or refused, before anybody hears of it."""

        try:
            async with self._lock:
                done = await asyncio.to_thread(work)
        except (HoldfastError, OSError) as error:
            problem = _problem_of(error)
            await self._note(entry_of(self._clock.now(), act, outcome=problem.code, **details))
            raise problem from None
        await self._note(entry_of(self._clock.now(), act, outcome="done", **details))
        return done

    async def _note(self, entry: Entry) -> None:
        """Return when it is on the disk; LogDamaged."""
        written = asyncio.get_running_loop().create_future()
        self._unwritten.append((entry, written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        while self._unwritten:
            batch = self._unwritten[:_TOGETHER_MAX]
            del self._unwritten[:_TOGETHER_MAX]
            failure: BaseException | None = None
            try:
                await asyncio.to_thread(self._log.note, [entry for entry, _ in batch])
            except HoldfastError as error:
                failure = error
            for _, written in batch:
                if not written.done():  # whoever asked may have gone
                    written.set_exception(failure) if failure else written.set_result(None)

    async def make_tenant_key(self, tenant: str) -> str:
        def work() -> str:
            path = self._tenant_file(tenant)
            if not path.exists():
                _write_new(path, TenantKey.make(tenant).dump())
            return self._tenant_key(tenant).id

        return await self._run("make_tenant_key", work, tenant=tenant)

    async def new_group_key(self, tenant: str, vpg: str, tenant_key_id: str) -> WrappedKey:
        def work() -> WrappedKey:
            made = GroupKey.make(self._key_of_id(tenant, tenant_key_id), vpg)
            return WrappedKey(tenant, vpg, made.id, made.wrapped, made.tenant_key_id)

        return await self._run("new_group_key", work, tenant=tenant, vpg=vpg)

    async def issue_data_key(
        self, request: DataKeyRequest, wrapped: WrappedKey, denied: frozenset[str]
    ) -> DataKeyAnswer:
        def work() -> DataKeyAnswer:
            for host in denied:
                self._deny(request.tenant, host)
            check_request(request, self._root, self._clock.now())
            if self._denied_file(request.tenant, request.host).exists():
                raise KeyRefused("The host was revoked.", hint="Let it join anew.")
            group = self._open(wrapped, request.tenant, request.vpg)
            return _answer(request, group)

        names = ("tenant", "vpg", "host", "generation")
        details = {name: str(getattr(request, name)) for name in names}
        details["kind"] = "new" if request.key_object is None else "open"
        return await self._run("issue_data_key", work, **details)

    async def seal_group_key(self, wrapped: WrappedKey, ticket: str, to: Recipient) -> bytes:
        def work() -> bytes:
            group = self._open(wrapped, wrapped.tenant, wrapped.vpg)
            context = (JOB_CONTEXT, wrapped.tenant, wrapped.vpg, ticket)
            return seal_to(to.public_key, group.dump(), *context)

        details = {"tenant": wrapped.tenant, "vpg": wrapped.vpg, "ticket": ticket}
        return await self._run("seal_group_key", work, **details, **_shown(to))

    async def seal_for_restore(
        self, wrapped: WrappedKey, ticket: str, to: RestoreProcess
    ) -> DoorKey:
        def work() -> DoorKey:
            point = check_restore_process(to.chain, wrapped.tenant, self._root, self._clock.now())
            return seal_group_key(self._open(wrapped, wrapped.tenant, wrapped.vpg), ticket, point)

        details = {"tenant": wrapped.tenant, "vpg": wrapped.vpg, "ticket": ticket}
        return await self._run("seal_for_restore", work, **details, reason=to.reason)

    async def export_tenant_key(self, tenant: str, to: Recipient) -> bytes:
        def work() -> bytes:
            return seal_to(to.public_key, self._tenant_key(tenant).dump(), RECOVERY_CONTEXT, tenant)

        return await self._run("export_tenant_key", work, tenant=tenant, **_shown(to))

    def _open(self, wrapped: WrappedKey, tenant: str, vpg: str) -> GroupKey:
        """WrongKey for what this tenant's key did not wrap for this group."""
        if (wrapped.tenant, wrapped.vpg) != (tenant, vpg):
            raise KeyRefused("The wrapped key is of another group than the request.")
        over = self._key_of_id(tenant, wrapped.tenant_key_id)
        opened = unwrap(over.key, wrapped.wrapped, "group", tenant, vpg)
        if key_id(opened) != wrapped.id:
            raise KeyRefused("The wrapped key is another than it says.")
        return GroupKey(tenant, vpg, opened, wrapped.wrapped, wrapped.tenant_key_id)

    def _key_of_id(self, tenant: str, tenant_key_id: str) -> TenantKey:
        key = self._tenant_key(tenant)
        if key.id != tenant_key_id:
            raise KeyMissing(
                f"The tenant's key here is {key.id}, not {tenant_key_id}.",
                hint="Put back the tenant's key file from the recovery kit.",
            )
        return key

    def _tenant_key(self, tenant: str) -> TenantKey:
        try:
            key = TenantKey.parse(self._tenant_file(tenant).read_bytes())
        except FileNotFoundError:
            raise KeyMissing(
                f"The key of {tenant} is not here.",
                hint="Put back the tenant's key file from the recovery kit.",
            ) from None
        if key.tenant != tenant:
            raise BadKeyFile(f"The key file of {tenant} holds the key of {key.tenant}.")
        return key

    def _tenant_file(self, tenant: str) -> Path:
        return self._directory / "tenants" / f"{check_name('tenant', tenant)}.key"

    def _denied_file(self, tenant: str, host: str) -> Path:
        return self._directory / "denied" / check_name("tenant", tenant) / check_name("host", host)

    def _deny(self, tenant: str, host: str) -> None:
        path = self._denied_file(tenant, host)
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _write_new(path, b"")
            entry = entry_of(self._clock.now(), "deny_host", tenant=tenant, host=host)
            self._log.note([entry])


def _problem_of(error: HoldfastError | OSError) -> KeyProblem:
    if isinstance(error, KeyProblem):
        return error
    if isinstance(error, OSError):
        return KeyMissing(f"A file of the key service cannot be used: {error.strerror}.")
    return KeyRefused(error.message, hint=error.hint)


def _answer(request: DataKeyRequest, group: GroupKey) -> DataKeyAnswer:
    generation = bytes.fromhex(request.generation)
    if request.key_object is None:
        data_key, made = make_data_key(group, request.identity, generation)
    else:
        made = request.key_object.encode()
        data_key = open_with_group(made, group, request.identity, generation)
    return answer_to(request, data_key, made)


def _shown(to: Recipient) -> dict[str, str]:
    return {"recipient": to.public_key.hex(), "reason": to.reason}


def _hold(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise KeysBusy(
            f"Another key service works in {directory}.", hint="Stop it, or name another folder."
        ) from None
    return lock


def _write_new(path: Path, data: bytes) -> None:
    """A new file of mode 0600 that survives a power cut, complete or absent."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
