"""The CRC-32C that a whole image must have, from its pieces in any order, and that of a file as it
is read.

A CRC is linear: replacing zeroes by data changes the image's CRC by the difference of the piece's
CRC and that of as many zeroes, moved to its place. So each piece adds one term, and the order does
not matter.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from host_agent.wire.crc import shift

_BATCH = 64 * 1024
_START = np.uint32(0xFFFFFFFF)


@lru_cache(maxsize=4096)
def zeroes_crc(length: int) -> int:
    """CRC-32C of `length` zero bytes."""
    moved = shift(np.array([_START], np.uint32), np.array([length], np.uint64))
    return int(moved[0] ^ _START)


def after_zeroes(crc: int, length: int) -> int:
    """CRC-32C of what `crc` covers, followed by `length` zero bytes."""
    moved = shift(np.array([crc], np.uint32), np.array([length], np.uint64))
    return int(moved[0]) ^ zeroes_crc(length)


class ImageCrc:
    """The CRC of an image of `size` bytes that is zero but for the pieces that were added."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._crc = zeroes_crc(size)
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]] = []
        self._count = 0

    def add(
        self, start: NDArray[np.uint64], length: NDArray[np.uint64], crc: NDArray[np.uint32]
    ) -> None:
        """Pieces that overlap no other: bytes of the image, and the CRC of what is there."""
        self._waiting.append((start, length, crc))
        self._count += len(start)
        if self._count >= _BATCH:
            self._combine()

    def _combine(self) -> None:
        if not self._waiting:
            return
        start, length, crc = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._count = [], 0
        lengths, inverse = np.unique(length, return_inverse=True)
        zeroes = np.array([zeroes_crc(int(n)) for n in lengths], np.uint32)[inverse]
        behind = np.uint64(self._size) - start.astype(np.uint64) - length.astype(np.uint64)
        terms = shift((crc ^ zeroes).astype(np.uint32), behind)
        self._crc ^= int(np.bitwise_xor.reduce(terms))

    def value(self) -> int:
        """The whole image's CRC-32C."""
        self._combine()
        return self._crc
