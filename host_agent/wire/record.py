"""Records: what the tap writes down of each request. FORMAT.md section 1."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host_agent.wire import limits
from host_agent.wire.errors import WireError

Records = NDArray[Any]
"""An array of RECORD (or RING_ENTRY) rows."""

NO_DISK = 0xFFFF

#: Sequences stay below this, so that they fit signed integers everywhere.
SEQ_LIMIT = limits.SEQ_LIMIT


class Op(IntEnum):
    """What happened. From 128 up a reader skips what it does not know."""

    WRITE = 1
    ZERO = 2
    TRIM = 3
    FLUSH = 4
    RESIZE = 5
    SYNC = 6
    SYNC_ZERO = 7
    BEGIN = 16
    END = 17
    MARK = 18
    COMMIT = 19
    DISK = 20
    DETACH = 21
    CONFIG = 22
    HANDOVER = 23


class Flag(IntFlag):
    """FUA: durable before it was answered. MORE, TAIL: pieces of one request."""

    FUA = 1
    MORE = 2
    TAIL = 4


class State(IntEnum):
    """What a stream does with the writes of its guests."""

    NONE = 0
    RECORDING = 1
    DIRTY = 2
    SYNCING = 3


_COLUMNS = [
    ("seq", "<u8"),
    ("time", "<u8"),
    ("offset", "<u8"),
    ("aux", "<u8"),
    ("length", "<u4"),
    ("crc", "<u4"),
    ("payload_length", "<u4"),
    ("disk", "<u2"),
    ("op", "u1"),
    ("flags", "u1"),
]
RECORD: np.dtype[Any] = np.dtype(_COLUMNS)
RING_ENTRY: np.dtype[Any] = np.dtype(
    [*_COLUMNS, ("payload_pos", "<u8"), ("lap", "<u4"), ("entry_crc", "<u4")]
)
assert RECORD.itemsize == 48
assert RING_ENTRY.itemsize == 64

DATA_OPS = (Op.WRITE, Op.SYNC)
ZERO_OPS = (Op.ZERO, Op.TRIM, Op.SYNC_ZERO)
BODY_OPS = (Op.BEGIN, Op.END, Op.MARK, Op.COMMIT, Op.DISK, Op.DETACH, Op.CONFIG, Op.HANDOVER)
_KNOWN_LIMIT = 128


def _ops_table(*groups: tuple[Op, ...]) -> NDArray[np.bool_]:
    table = np.zeros(256, bool)
    for group in groups:
        table[list(group)] = True
    return table


_KNOWN = _ops_table(tuple(Op))
_KNOWN[_KNOWN_LIMIT:] = True
_DATA = _ops_table(DATA_OPS)
_ZERO = _ops_table(ZERO_OPS)
_SYNC = _ops_table((Op.SYNC, Op.SYNC_ZERO))
_BODY = _ops_table(BODY_OPS)
_BODY[_KNOWN_LIMIT:] = True
_SPLIT = _ops_table((Op.WRITE, Op.ZERO, Op.TRIM))
_ON_DISK = _ops_table(DATA_OPS, ZERO_OPS, (Op.FLUSH, Op.RESIZE))


def writes_disk(records: Records) -> NDArray[np.bool_]:
    """Which records change bytes of a disk."""
    changes: NDArray[np.bool_] = _DATA[records["op"]] | _ZERO[records["op"]]
    return changes


def has_body(records: Records) -> NDArray[np.bool_]:
    """Which records carry a JSON body."""
    carries: NDArray[np.bool_] = _BODY[records["op"]]
    return carries


def order_keys(records: Records) -> NDArray[np.uint64]:
    """The position by which each record orders among writes: `aux` for sync blocks, else `seq`.

    The later of two records over the same byte is the one with the greater (order, seq).
    """
    return np.where(_SYNC[records["op"]], records["aux"], records["seq"]).astype(np.uint64)


def _refuse(records: Records, bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        row = records[int(np.argmax(bad))]
        raise WireError(f"Record {int(row['seq'])} (op {int(row['op'])}) {what}.")


def check_records(records: Records, first_seq: int) -> None:
    """Raise WireError unless the rows are valid records numbered from `first_seq` without a gap."""
    count = len(records)
    if not 1 <= first_seq < SEQ_LIMIT - count:
        raise WireError(f"{first_seq} cannot be the first of {count} sequences.")
    if _are_plain_writes(records, first_seq):
        return
    op, length, payload = records["op"], records["length"], records["payload_length"]
    expected = np.arange(first_seq, first_seq + count, dtype=np.uint64)
    _refuse(records, records["seq"] != expected, "is out of sequence")
    if count > 1 and (records["time"][1:] < records["time"][:-1]).any():
        raise WireError("The records' times run back.")
    _refuse(records, ~_KNOWN[op], "is of an unknown kind that may not be skipped")
    _check_flags(records)
    known = op < _KNOWN_LIMIT
    data, zero, body = _DATA[op], _ZERO[op], _BODY[op]
    _refuse(records, data & (payload != length), "has a payload of another length than its range")
    _refuse(records, data & (payload > limits.RECORD_PAYLOAD_BYTES_MAX), "has too large a payload")
    _refuse(records, body & (payload > limits.BODY_BYTES_MAX), "has too large a body")
    _refuse(records, known & ~data & ~body & (payload != 0), "may not have a payload")
    _refuse(records, (payload == 0) & (records["crc"] != 0), "has a checksum of no payload")
    _refuse(records, known & ~data & ~zero & (length != 0), "may not cover a range")
    _refuse(records, (data | zero) & (length == 0), "covers nothing")
    _check_ranges(records, data | zero)
    sync = _SYNC[op]
    _refuse(records, sync & (records["aux"] >= records["seq"]), "was read after it was recorded")
    _refuse(
        records, known & ~sync & (op != Op.BEGIN) & (records["aux"] != 0), "has a stray position"
    )
    on_disk = _ON_DISK[op]
    _refuse(records, on_disk & (records["disk"] >= limits.STREAM_DISKS_MAX), "names no disk")
    _refuse(records, known & ~on_disk & (records["disk"] != NO_DISK), "may not name a disk")


def _are_plain_writes(records: Records, first_seq: int) -> bool:
    """Whether all are whole writes that keep every rule of `check_records`: nearly all batches are
    that, and it is seen in a third of the time."""
    if not len(records) or (records["op"] != Op.WRITE).any():
        return False
    if records["flags"].any() or records["aux"].any():
        return False
    seq, time = records["seq"], records["time"]
    steps_up = int(seq[0]) == first_seq and bool((seq[1:] - seq[:-1] == 1).all())
    offset, length = records["offset"], records["length"]
    sectors = (offset | length) & np.uint64(limits.SECTOR_BYTES - 1)
    return (
        steps_up
        and bool((time[1:] >= time[:-1]).all())
        and bool((records["payload_length"] == length).all())
        and int(length.min()) > 0
        and int(length.max()) <= limits.RECORD_PAYLOAD_BYTES_MAX
        # With so short a length no sum runs over.
        and int(offset.max()) <= limits.DISK_BYTES_MAX - limits.RECORD_PAYLOAD_BYTES_MAX
        and not sectors.any()
        and int(records["disk"].max()) < limits.STREAM_DISKS_MAX
    )


def _check_flags(records: Records) -> None:
    flags, op = records["flags"], records["op"]
    _refuse(records, (flags & 0xF8) != 0, "has unknown flags")
    more, tail = (flags & Flag.MORE) != 0, (flags & Flag.TAIL) != 0
    whole = (op < _KNOWN_LIMIT) & ~_SPLIT[op]
    _refuse(records, whole & (more | tail), "may not be a piece of a request")
    torn = np.zeros(len(records), bool)
    torn[1:] = more[:-1] != tail[1:]
    _refuse(records, torn, "does not continue the request before it")


def _check_ranges(records: Records, covers: NDArray[np.bool_]) -> None:
    offset, length, op = records["offset"], records["length"], records["op"]
    unit = np.uint64(limits.SECTOR_BYTES)
    ranged = covers | (op == Op.RESIZE)
    end = offset + length
    bad = ranged & ((end > limits.DISK_BYTES_MAX) | (end < offset))
    _refuse(records, bad, "reaches beyond the largest disk")
    _refuse(records, ranged & ((offset % unit != 0) | (length % unit != 0)), "is not aligned")
    stray = (op < _KNOWN_LIMIT) & ~ranged & (offset != 0)
    _refuse(records, stray, "has a stray offset")
