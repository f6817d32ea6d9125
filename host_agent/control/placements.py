"""Which tenants a provider's host serves: a folder for each below `tenants/`, durable before it is
answered. The owner's process writes them, the parent acts on them, the tenant's process lives in
its own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from host_agent.control import enrol
from host_agent.control.errors import StateUnusable, UnknownTenant
from host_agent.control.managed import STATE, ManagedHost
from host_agent.control.state_dir import usable, write_durably
from host_agent.wire.control import PLACEMENT_FAILED, Event, Place, Withdraw, failure_of
from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import check_name

_TENANTS = "tenants"
_PLACEMENT, _WITHDRAWN, _FAILURE = "placement.json", "withdrawn", "failure.json"
_FILE_BYTES_MAX = 16 * 1024


def folder(directory: Path, tenant: str) -> Path:
    """A placed tenant's folder."""
    return directory / _TENANTS / tenant


def tenants(directory: Path) -> list[str]:
    """All that have a folder."""
    try:
        return sorted(path.name for path in (directory / _TENANTS).iterdir())
    except FileNotFoundError:
        return []


def is_withdrawn(directory: Path, tenant: str) -> bool:
    """Whether the tenant is to go."""
    return (folder(directory, tenant) / _WITHDRAWN).exists()


def has_identity(directory: Path) -> bool:
    """Whether somebody enrolled there."""
    return (directory / enrol.IDENTITY).exists()


def is_wiped(directory: Path, tenant: str) -> bool:
    """Whether no group of the tenant is left; only then may its folder go."""
    groups = folder(directory, tenant) / STATE / "groups"
    return not groups.exists() or not any(groups.iterdir())


def check_owner(directory: Path) -> None:
    """EnrolmentFailed if the folder holds no identity. Reads no key."""
    enrol.load_identity(directory)


def note_failure(directory: Path, error: HoldfastError) -> None:
    """Leave word in a placed tenant's folder of why its process ended; StateUnusable."""
    failure = failure_of(error)
    said = {"code": failure.code, "message": failure.message, "hint": failure.hint}
    write_durably(directory / _FAILURE, json.dumps(said).encode())


class Placements:
    """The verbs `place` and `withdraw` of the owner's connection, and word of tenants whose process
    cannot start. `wake` has the parent look.
    """

    def __init__(self, directory: Path, wake: Callable[[], object]) -> None:
        self._directory = directory
        self._wake = wake
        self._told: dict[str, Mapping[str, Any]] = {}

    def add_to(self, host: ManagedHost) -> None:
        """Have the owner's process do them."""
        host.commands.add(Place, self._place)
        host.commands.add(Withdraw, self._withdraw)
        host.events = self.failures

    def failures(self, now_ns: int, *, is_new_manager: bool = False) -> Iterator[Event]:
        """What is to be told of tenants whose process ended badly: each once to each manager."""
        if is_new_manager:
            self._told.clear()
        for tenant in tenants(self._directory):
            said = _failure_of(folder(self._directory, tenant))
            if said is not None and said != self._told.get(tenant):
                self._told[tenant] = said
                yield Event(PLACEMENT_FAILED, tenant, now_ns, said)

    async def _place(self, body: Place) -> Mapping[str, Any]:
        """Repeated with a fresh token, it replaces one that was never used."""
        path = folder(self._directory, check_name("tenant", body.tenant))
        if (path / _WITHDRAWN).exists():
            raise StateUnusable(
                f"Tenant {body.tenant} is still being removed from this host.",
                hint="A machine may still use a disk of its. Try again later.",
                retryable=True,
            )
        is_new = not has_identity(path)
        if is_new:
            with usable(path):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            told = {"api": self._api(), "token": body.token, "control_doors": body.doors}
            write_durably(path / _PLACEMENT, json.dumps(told).encode())
        self._wake()
        return {"tenant": body.tenant, "is_new": is_new}

    def _api(self) -> str:
        """Where the owner joined: this host is known to reach it."""
        return enrol.load_identity(self._directory).api

    async def _withdraw(self, body: Withdraw) -> Mapping[str, Any]:
        path = folder(self._directory, check_name("tenant", body.tenant))
        if not path.is_dir():
            raise UnknownTenant(f"Tenant {body.tenant} is not placed on this host.")
        write_durably(path / _WITHDRAWN, b"")
        self._wake()
        return {"tenant": body.tenant}


def join(directory: Path) -> None:
    """Enrol with the token of the placement, if that was not done yet; EnrolmentFailed."""
    path = directory / _PLACEMENT
    if not has_identity(directory):
        placement = _read(path)
        found = enrol.enrol(str(placement["api"]), str(placement["token"]), directory)
        if found.facts["tenant_id"] != directory.name:
            (directory / enrol.IDENTITY).unlink()
            raise enrol.EnrolmentFailed(
                f"The token was of tenant {found.facts['tenant_id']}, not of {directory.name}.",
                hint="Place the tenant again.",
            )
        if not found.control_doors:
            enrol.set_control_doors(directory, [str(one) for one in placement["control_doors"]])
    with usable(path):
        path.unlink(missing_ok=True)
        (directory / _FAILURE).unlink(missing_ok=True)


def _failure_of(directory: Path) -> dict[str, Any] | None:
    """What the tenant's process left; None: nothing, or nothing that can be read."""
    with contextlib.suppress(FileNotFoundError, StateUnusable):
        return _read(directory / _FAILURE)
    return None


def _read(path: Path) -> dict[str, Any]:
    with usable(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(_FILE_BYTES_MAX)
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StateUnusable(f"{path} is damaged.", hint="Place the tenant again.")
    return found
