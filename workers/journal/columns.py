"""Columns of numbers as bytes: byte planes, some of differences. FORMAT.md section 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from host_agent.wire.errors import WireError
from host_agent.wire.planes import from_planes, to_planes

Columns = dict[str, NDArray[Any]]

#: Column to (type, whether differences are stored).
Kinds = Mapping[str, tuple[str, bool]]

ROWS: Kinds = {"time": ("<u8", True), "flags": ("u1", False)}
FRAMES: Kinds = {
    "place": ("<u8", True),
    "records": ("<u4", False),
    "payload_offset": ("<u8", True),
    "payload_sealed": ("<u4", False),
    "payload_plain": ("<u4", False),
}
ENTRIES: Kinds = {
    "row": ("<u8", True),
    "offset": ("<u8", True),
    "aux": ("<u8", True),
    "length": ("<u4", False),
    "payload_at": ("<u4", True),
    "frame": ("<u4", True),
    "op": ("u1", False),
}


def distinct(ordered: NDArray[Any]) -> NDArray[Any]:
    """The values of an ordered column, each once. (np.unique looks whether it is masked, for which
    it imports a module that takes as long as reading a whole index object.)"""
    return ordered[np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])]


def pack_columns(columns: Mapping[str, NDArray[Any]], kinds: Kinds) -> dict[str, bytes]:
    """Columns as byte planes, of differences where `kinds` says so."""
    packed = {}
    for name, (kind, differs) in kinds.items():
        column = np.ascontiguousarray(columns[name], dtype=kind)
        if differs and len(column):
            # Modulo the type's size, so that every value comes back.
            column = np.concatenate([column[:1], column[1:] - column[:-1]]).astype(kind)
        packed[name] = to_planes(column)
    return packed


def unpack_columns(packed: Mapping[str, bytes], kinds: Kinds) -> Columns:
    """What `pack_columns` made, all equally long; WireError, KeyError."""
    columns: Columns = {}
    for name, (kind, differs) in kinds.items():
        data, size = packed[name], np.dtype(kind).itemsize
        if len(data) % size:
            raise WireError("A column is cut off.")
        planes = np.frombuffer(data, np.uint8).reshape(size, len(data) // size)
        column = from_planes(planes, np.dtype(kind))
        columns[name] = np.cumsum(column, dtype=kind) if differs else column
    if len({len(column) for column in columns.values()}) != 1:
        raise WireError("Columns that belong together are not equally long.")
    return columns


def pack(columns: Mapping[str, NDArray[Any]], kinds: Kinds) -> bytes:
    """Columns as one byte string."""
    return msgspec.msgpack.encode(pack_columns(columns, kinds))


def unpack(data: bytes, kinds: Kinds, count: int) -> Columns:
    """What `pack` packed: columns of `count` rows; WireError."""
    try:
        columns = unpack_columns(msgspec.msgpack.decode(data, type=dict[str, bytes]), kinds)
    except (msgspec.DecodeError, UnicodeError, KeyError, RecursionError) as error:
        raise WireError(f"The columns of an index object are malformed: {error}.") from None
    if any(len(column) != count for column in columns.values()):
        raise WireError("The columns of an index object have another length than it says.")
    return columns
