"""Sectors that say what they are: any image can be checked by itself, without the history.

512 bytes: magic 8 | disk u64 | sector u64 | counter u64 | previous counter u64 | filler | CRC-32C
u32. The counter is the writer's own, growing over the whole disk; `previous` is the counter that
this sector held before, 0 for none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

SECTOR = 512
MAGIC = b"HFSECT\x00\x01"
_HEAD = struct.Struct("<8sQQQQ")
_TAIL = struct.Struct("<I")
_POLY = 0x82F63B78


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLY if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C, one byte at a time: independent of the library that the product uses."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def make_sector(disk: int, sector: int, counter: int, previous: int = 0) -> bytes:
    """A sector that names its place and its turn."""
    head = _HEAD.pack(MAGIC, disk, sector, counter, previous)
    seed = struct.pack("<QQ", counter * 0x9E3779B97F4A7C15 % 2**64, sector)
    body = head + (seed * 30)[: SECTOR - len(head) - 4]
    return body + _TAIL.pack(crc32c(body))


@dataclass(frozen=True)
class Sector:
    """What a sector says of itself."""

    disk: int
    sector: int
    counter: int
    previous: int


@dataclass(frozen=True)
class Fault:
    """A sector that cannot be what it claims."""

    sector: int
    reason: str


def read_sector(data: bytes) -> Sector | None:
    """What the sector says; None if it is no such sector or its checksum is wrong."""
    magic, disk, sector, counter, previous = _HEAD.unpack_from(data)
    if magic != MAGIC or crc32c(data[:-4]) != _TAIL.unpack_from(data, SECTOR - 4)[0]:
        return None
    return Sector(disk, sector, counter, previous)


class SectorWriter:
    """Makes the sectors of one disk in the order in which a guest would write them."""

    def __init__(self, disk: int) -> None:
        self.disk = disk
        self.counter = 0
        self.newest: dict[int, int] = {}

    def write(self, sector: int, count: int) -> bytes:
        """The bytes of a write of `count` sectors at `sector`. One write is one turn of the
        counter."""
        self.counter += 1
        out = []
        for at in range(sector, sector + count):
            out.append(make_sector(self.disk, at, self.counter, self.newest.get(at, 0)))
            self.newest[at] = self.counter
        return b"".join(out)


def faults(
    image: bytes, disk: int, newest: int, oldest: dict[int, int] | None = None
) -> Iterator[Fault]:
    """What is wrong with an image that was cut when the writer's counter stood at `newest`.

    `oldest` gives, for each sector, the counter that the cut guarantees at least. Zero sectors are
    allowed where nothing is guaranteed.
    """
    wanted = oldest or {}
    for at in range(len(image) // SECTOR):
        data = image[at * SECTOR : (at + 1) * SECTOR]
        least = wanted.get(at, 0)
        if not any(data):
            if least:
                yield Fault(at, f"is empty, and must hold turn {least}")
            continue
        said = read_sector(data)
        if said is None:
            yield Fault(at, "is torn or foreign")
        elif said.disk != disk or said.sector != at:
            yield Fault(at, f"belongs to disk {said.disk}, sector {said.sector}")
        elif said.counter > newest:
            yield Fault(at, f"holds turn {said.counter}, newer than the cut at {newest}")
        elif said.counter < least:
            yield Fault(at, f"holds turn {said.counter}, older than {least}")
