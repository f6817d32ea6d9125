"""Another enterprise of the same provider tries to see what is not its own."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from host_agent.wire import message, restoring
from host_agent.wire.names import INGEST, RESTORE, server_name
from infra.demo.asking import Caller, Probe, Routes
from infra.demo.report import Report
from infra.demo.service import Tenant

_DOOR_SECONDS = 2.0


@dataclass(frozen=True)
class Side:
    """A tenant as an intruder would be one: its token, its host's certificate, what it has."""

    tenant: Tenant
    caller: Caller
    certificate: Path

    @classmethod
    def of(cls, tenant: Tenant, certificate: Path) -> Side:
        """With the key of the tenant's administrator."""
        root = tenant.service.state / "root.crt"
        token = tenant.key_file.read_text().strip()
        return cls(tenant, Caller(tenant.service.api, root, token), certificate)


@dataclass(frozen=True)
class Attempt:
    """What the stranger was answered: as for something absent, or not; and what its owner was."""

    probe: Probe
    is_as_absent: bool
    owner_status: int | None


class Intrusion:
    """Everything of `owner` that `stranger` can name, tried one after the other."""

    def __init__(self, owner: Side, stranger: Side, report: Report) -> None:
        self._owner, self._stranger, self._report = owner, stranger, report
        self._routes = Routes(owner.caller)

    def check_api(self) -> None:
        """Each object by each route, read and changed; and what the stranger's own lists hold."""
        attempts = [self._attempt(probe) for probe in self._routes.probes()]
        reads = [one for one in attempts if one.owner_status is not None]
        leaks = [f"{one.probe.method} {one.probe.path}" for one in attempts if not one.is_as_absent]
        routes = {one.probe.route for one in attempts}
        objects = {identifier for one in attempts for identifier in one.probe.identifiers}
        self._report.say(
            f"{len(objects)} objects of {self._owner.tenant.name} tried by {len(routes)} routes"
        )
        self._report.check(
            "the questions are good ones: their owner is answered each that reads",
            bool(reads) and all(one.owner_status == 200 for one in reads),
            asked=len(reads),
        )
        self._report.check(
            "the other tenant is answered as if none of them existed",
            bool(attempts) and not leaks,
            attempts=len(attempts),
            routes=len(routes),
            leaks=leaks[:10],
        )
        self._check_lists(objects)

    def _attempt(self, probe: Probe) -> Attempt:
        nobody = probe.of_nobody
        got = self._stranger.caller.call(probe.method, probe.path, probe.body)
        wanted = self._stranger.caller.call(nobody.method, nobody.path, nobody.body)
        as_absent = got.status == 404 and got.comparable == wanted.comparable
        if probe.method != "GET":
            return Attempt(probe, as_absent, None)
        return Attempt(probe, as_absent, self._owner.caller.call("GET", probe.path).status)

    def _check_lists(self, objects: Iterable[str]) -> None:
        lists = [one for one in self._routes.collections if "{" not in one]
        told = b"".join(self._stranger.caller.call("GET", one).body for one in lists)
        shown = [one for one in objects if one.encode() in told]
        self._report.check(
            "none of them is in the other tenant's lists",
            bool(lists) and not shown,
            lists=len(lists),
            shown=shown[:10],
        )

    def check_doors(self) -> None:
        """The stranger's certificate where the owner's streams and restores go."""
        door = self._owner.tenant.service.data_door
        root = self._owner.tenant.service.state / "root.crt"
        for what in (INGEST, RESTORE):
            name = server_name(self._owner.tenant.id, what)
            answers = {
                side: is_let_in(door, name, root, certificate)
                for side, certificate in (
                    ("owner", self._owner.certificate),
                    ("stranger", self._stranger.certificate),
                )
            }
            self._report.check(
                f"the other tenant's certificate opens nothing at the {what} door",
                answers == {"owner": True, "stranger": False},
                **answers,
            )

    def check_secret(self, secrets: Iterable[bytes], files: Iterable[Path]) -> None:
        """The owner's secrets are in nothing that the stranger has."""
        held = [*self._stranger.caller.heard, *(one.read_bytes() for one in files)]
        seen = sum(any(secret in data for data in held) for secret in secrets)
        size = sum(map(len, held))
        self._report.check(
            "nothing that was written on the one's disk is in what the other was given",
            bool(held) and not seen,
            bytes_searched=size,
        )


def is_let_in(door: tuple[str, int], name: str, root: Path, certificate: Path) -> bool:
    """Whether the tenant's process at the door listens to the holder of the certificate."""
    context = ssl.create_default_context(cafile=str(root))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([message.ALPN, restoring.ALPN])
    context.load_cert_chain(certificate)
    try:
        with (
            socket.create_connection(door, timeout=_DOOR_SECONDS * 5) as raw,
            context.wrap_socket(raw, server_hostname=name) as connection,
        ):
            connection.settimeout(_DOOR_SECONDS)
            # Whoever is refused hears so at once; whoever is let in speaks first.
            connection.recv(1)
    except TimeoutError:
        return True
    except OSError:
        return False
    return False
