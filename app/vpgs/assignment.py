"""What a host is told to do, made from rows. Pure.

A host keeps it on its disk and works from it alone, so it names everything: the doors to the data
nodes, each group's pace, each disk's place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.kit.ids import encode
from app.vpgs.state import LIVE, Lifecycle
from host_agent.wire.names import INGEST, server_name

_DISK_NAME_MAX = 63
_NO_LETTER = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class DiskRow:
    """A disk of a group on the host. Identifiers are as users see them."""

    disk: str
    name: str
    machine: str
    source: dict[str, Any]


@dataclass(frozen=True)
class GroupRow:
    """A group with what it has on the host."""

    vpg: str
    name: str
    lifecycle: Lifecycle
    settings: dict[str, Any]
    disks: Sequence[DiskRow]


@dataclass(frozen=True)
class HostRow:
    """Whose assignment it is."""

    tenant: str
    host: str
    version: int
    doors: Sequence[str]


def make_assignment(host: HostRow, groups: Sequence[GroupRow]) -> dict[str, Any]:
    """The assignment, as JSON. Equal rows make equal assignments, in whatever order they come."""
    told = [
        _group(group)
        for group in sorted(groups, key=lambda group: group.vpg)
        if group.lifecycle in LIVE and group.disks
    ]
    return {
        "version": host.version,
        "tenant": host.tenant,
        "host": host.host,
        "doors": list(host.doors),
        "server_name": server_name(host.tenant, INGEST),
        "groups": told,
    }


def _group(group: GroupRow) -> dict[str, Any]:
    settings = group.settings
    return {
        "vpg": group.vpg,
        "name": group.name,
        "state": "paused" if group.lifecycle == Lifecycle.PAUSED else "protecting",
        "rpo_seconds": settings["rpo_seconds"],
        "replication_mbit_per_s": settings["replication_mbit_per_s"],
        "sync_mbit_per_s": settings["sync_mbit_per_s"],
        "ring_mib": settings["ring_mib"],
        "disks": [
            {
                "disk": disk.disk,
                "name": disk.name,
                "machine": disk.machine,
                "source": disk.source,
            }
            for disk in sorted(group.disks, key=lambda disk: (disk.name, disk.disk))
        ],
    }


def disk_name(machine: str, disk: str, disk_id: UUID, taken: set[str]) -> str:
    """A disk's name in its group's streams. Letters of its identifier are added where the plain
    name lost something or is taken, so that no other disk ever gets the same.
    """
    plain = f"{machine}.{disk}"
    name = _NO_LETTER.sub("-", plain.lower()).lstrip("._-")
    if name == plain and len(name) <= _DISK_NAME_MAX and name not in taken:
        return name
    suffix = f"-{encode(disk_id)[-12:]}"
    return (name[: _DISK_NAME_MAX - len(suffix)] + suffix).lstrip("._-")
