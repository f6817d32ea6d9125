"""Automatic checkpoints of one group and ten minutes as a few bytes each. Pure.

A pack is: version u8, hosts u8, count u16, the hosts' UUIDs of 16 bytes, then one column after the
other. A column is: width u8, base i64, and `count` numbers of `width` bytes (0, 1, 2, 3, 4 or 8),
each less than the column's value by the base. A running column is its first value as i64, then the
`count - 1` steps after it as a column. Numbers are little-endian. The columns:

1. expected, running: milliseconds from the pack's beginning
2. taken: microseconds from expected to the source's time of the cut
3. flags: the kind, and 128 where every stream's journal has it
4. response, 5. hold, 6. skew: microseconds
7. one for each host, running: the sequence; 0 is "not on this host"

Checkpoints stand in the order of expected, which is theirs alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING
from uuid import UUID

from host_agent.wire.errors import HoldfastError

# numpy is loaded with the first pack: a process that nobody asks for checkpoints stays smaller by
# some 15 MiB, and there are three on one machine.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]

VERSION = 1
PACK_MS = 600_000
COMPLETE = 128
HOSTS_MAX = 64
_HEAD = struct.Struct("<BBH")
_COLUMN = struct.Struct("<Bq")
_FIRST = struct.Struct("<q")
_WIDTHS = (0, 1, 2, 3, 4, 8)


class BadPack(HoldfastError):
    """Bytes that are no pack of checkpoints."""

    code = "bad_checkpoint_pack"


@dataclass(frozen=True)
class Columns:
    """Checkpoints as columns, in the order of `expected`: milliseconds from the pack's beginning.
    `positions` has a row for each checkpoint and a column for each of `hosts`.
    """

    hosts: tuple[UUID, ...]
    expected: Numbers
    taken: Numbers
    flags: Numbers
    response: Numbers
    hold: Numbers
    skew: Numbers
    positions: Numbers

    def __len__(self) -> int:
        return len(self.expected)

    @property
    def is_complete(self) -> npt.NDArray[np.bool_]:
        """Which of them can be recovered."""
        complete: npt.NDArray[np.bool_] = (self.flags & COMPLETE) != 0
        return complete


NAMES = tuple(one.name for one in fields(Columns))[1:-1]


def make_columns(
    hosts: tuple[UUID, ...], rows: list[tuple[int, ...]], positions: list[list[int]]
) -> Columns:
    """Columns from rows of (expected, taken, flags, response, hold, skew) in the order of time."""
    import numpy as np

    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(NAMES))
    at = np.array(positions, dtype=np.int64).reshape(len(rows), len(hosts))
    plain = {name: table[:, place] for place, name in enumerate(NAMES)}
    return Columns(hosts, positions=at, **plain)


def pack(columns: Columns) -> bytes:
    """The bytes of a pack. ValueError for more hosts or checkpoints than a pack can have."""
    count, hosts = len(columns), len(columns.hosts)
    if hosts > HOSTS_MAX or count > 0xFFFF:
        raise ValueError(f"A pack has no room for {count} checkpoints on {hosts} hosts.")
    parts = [_HEAD.pack(VERSION, hosts, count), *(host.bytes for host in columns.hosts)]
    parts.append(_write_running(columns.expected))
    parts += [_write(getattr(columns, name)) for name in NAMES[1:]]
    parts += [_write_running(columns.positions[:, place]) for place in range(hosts)]
    return b"".join(parts)


def unpack(data: bytes) -> Columns:
    """The checkpoints of a pack; BadPack."""
    import numpy as np

    try:
        version, hosts, count = _HEAD.unpack_from(data)
    except struct.error:
        raise BadPack("A pack of checkpoints is cut short.") from None
    if version != VERSION or hosts > HOSTS_MAX:
        raise BadPack(f"A pack of checkpoints has version {version} and {hosts} hosts.")
    reader = _Reader(data, _HEAD.size)
    named = tuple(UUID(bytes=reader.take(16)) for _ in range(hosts))
    expected = reader.running(count)
    plain = {name: reader.column(count) for name in NAMES[1:]}
    at = [reader.running(count) for _ in named]
    reader.end()
    if count and (np.any(np.diff(expected) <= 0) or expected[0] < 0 or expected[-1] >= PACK_MS):
        raise BadPack("The checkpoints of a pack are not in the order of their times.")
    positions = np.stack(at, axis=1) if at else np.zeros((count, 0), np.int64)
    return Columns(named, expected, positions=positions, **plain)


def _write_running(values: Numbers) -> bytes:
    import numpy as np

    first = int(values[0]) if len(values) else 0
    return _FIRST.pack(first) + _write(np.diff(values))


def _write(values: Numbers) -> bytes:
    import numpy as np

    if not len(values):
        return _COLUMN.pack(0, 0)
    base = int(values.min())
    over = (values - base).astype(np.uint64)
    largest = int(over.max())
    width = next(width for width in _WIDTHS if largest < 1 << (8 * width))
    plain = over.astype("<u8").view(np.uint8).reshape(len(values), 8)
    return _COLUMN.pack(width, base) + plain[:, :width].tobytes()


class _Reader:
    """Takes a pack apart; BadPack where it ends too early or too late."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def take(self, length: int) -> bytes:
        part = self._data[self._at : self._at + length]
        if len(part) != length:
            raise BadPack("A pack of checkpoints is cut short.")
        self._at += length
        return part

    def column(self, count: int) -> Numbers:
        import numpy as np

        width, base = _COLUMN.unpack(self.take(_COLUMN.size))
        if width not in _WIDTHS:
            raise BadPack(f"A column of a pack has numbers of {width} bytes.")
        plain = np.zeros((count, 8), np.uint8)
        given = np.frombuffer(self.take(count * width), np.uint8)
        plain[:, :width] = given.reshape(count, width)
        with np.errstate(over="ignore"):
            values: Numbers = plain.view("<u8").reshape(count).astype(np.int64) + np.int64(base)
        return values

    def running(self, count: int) -> Numbers:
        import numpy as np

        (first,) = _FIRST.unpack(self.take(_FIRST.size))
        steps = self.column(max(0, count - 1))
        with np.errstate(over="ignore"):
            return np.cumsum(np.concatenate(([first], steps))[:count], dtype=np.int64)

    def end(self) -> None:
        if self._at != len(self._data):
            raise BadPack("A pack of checkpoints goes on after its end.")
