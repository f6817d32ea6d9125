"""Bytes that lie in several places: what is written out needs no copy of it in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Pieces:
    """Bytes in order. Equal to any bytes that are the same in one piece."""

    parts: Sequence[bytes | memoryview]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Pieces):
            return bytes(self) == bytes(other)
        if not isinstance(other, bytes | bytearray | memoryview):
            return NotImplemented
        return len(self) == len(other) and bytes(self) == other

    __hash__ = None  # type: ignore[assignment]


Content = bytes | bytearray | memoryview | Pieces
"""What an object is made of."""
