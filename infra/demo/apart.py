"""Whether tenants on one host are apart there: processes, connections, streams, keys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from infra.demo.host import Seat
from infra.demo.report import Report
from infra.demo.service import Service

_ESTABLISHED = "01"


def check_apart(report: Report, service: Service, seats: Sequence[Seat]) -> None:
    """Each tenant has its own of everything on a host that serves several."""
    pids = [seat.pid() for seat in seats]
    connections = [_connections(pid, service.data_door[1]) for pid in pids]
    keys = [(seat.certificate.parent / "state/seal.key").read_bytes() for seat in seats]
    certificates = [seat.certificate.read_bytes() for seat in seats]
    streams = [_streams(service.bucket / seat.tenant.id) for seat in seats]
    report.check(
        "on the shared host each tenant has a process of its own",
        len(set(pids)) == len(seats) and os.getpid() not in pids,
        processes=pids,
    )
    report.check(
        "and a connection, and a stream in its own part of the bucket",
        all(connections) and not set.intersection(*connections) and all(streams),
        connections=[len(one) for one in connections],
        streams=[len(one) for one in streams],
    )
    report.check(
        "and a certificate and a sealing key of its own",
        len(set(keys)) == len(set(certificates)) == len(seats),
    )


def _connections(pid: int, port: int) -> set[str]:
    """The established connections of a process to a port of this machine, by their inodes."""
    mine = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = str(entry.readlink())
        if target.startswith("socket:["):
            mine.add(target[len("socket:[") : -1])
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    to_port = f":{port:04X}"
    return {
        one[9]
        for one in fields
        if one[9] in mine and one[3] == _ESTABLISHED and one[2].endswith(to_port)
    }


def _streams(folder: Path) -> list[str]:
    """The groups and hosts that have a chain below a tenant's part of the bucket."""
    return [str(one.parent.relative_to(folder)) for one in folder.glob("*/*/chain")]
