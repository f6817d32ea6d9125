"""The JSON bodies of records, as far as a restore needs them. FORMAT.md section 1."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from host_agent.wire import limits
from host_agent.wire.errors import WireError
from host_agent.wire.names import check_name


class DiskBody(msgspec.Struct, frozen=True):
    """A disk of the stream. `size` in bytes."""

    disk: int
    name: str
    size: int


class BeginBody(msgspec.Struct, frozen=True):
    """A sync interval begins."""

    cause: str
    generation: str
    disks: list[DiskBody]
    predecessor: str | None = None
    last_good: int = 0


class EndBody(msgspec.Struct, frozen=True):
    """A sync interval is over. `unreadable`: [disk, offset, length] that the disk refused."""

    bytes: int = 0
    unreadable: list[tuple[int, int, int]] = []


class MarkBody(msgspec.Struct, frozen=True):
    """A checkpoint's marker."""

    checkpoint: str
    kind: str
    scope: str
    tag: str | None = None


class CommitBody(msgspec.Struct, frozen=True):
    """A group checkpoint's commit: stream to (generation, sequence)."""

    checkpoint: str
    positions: dict[str, tuple[str, int]]


class DetachBody(msgspec.Struct, frozen=True):
    """A disk left the stream."""

    disk: int
    name: str


_Body = TypeVar("_Body", BeginBody, EndBody, MarkBody, CommitBody, DiskBody, DetachBody)


def parse(data: bytes, kind: type[_Body]) -> _Body:
    """A body of a known kind; WireError if it is anything else."""
    if len(data) > limits.BODY_BYTES_MAX:
        raise WireError("A record's body is larger than allowed.")
    try:
        body = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"A record's body is malformed: {error}.") from None
    if isinstance(body, BeginBody):
        check_disks(body.disks)
    elif isinstance(body, DiskBody):
        check_disks([body])
    return body


def check_disks(disks: list[DiskBody]) -> None:
    """Raise unless the disks could be those of one stream: names, numbers and sizes within
    limits."""
    if len({disk.disk for disk in disks}) != len(disks) or len({d.name for d in disks}) != len(
        disks
    ):
        raise WireError("Two disks of a stream have the same number or name.")
    for disk in disks:
        check_name("disk", disk.name)
        aligned = disk.size % limits.SECTOR_BYTES == 0
        if not 0 <= disk.disk < limits.STREAM_DISKS_MAX or not aligned:
            raise WireError(f"Disk {disk.name} has a number or a size that no disk has.")
        if not 0 <= disk.size <= limits.DISK_BYTES_MAX:
            raise WireError(f"Disk {disk.name} has a size that no disk has.")
