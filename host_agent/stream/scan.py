"""Reads a disk for a comparison: large reads, holes by jumps, hashes in C. Runs beside the loop."""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np

from host_agent.wire.hashlist import UNKNOWN, ZERO, Hashes, Kinds, blocks_of, hash_blocks
from host_agent.wire.limits import HASH_BLOCK_BYTES, MIB

#: One read. Large enough for any disk to be at its best, small enough to wait for.
CHUNK_BYTES = 8 * MIB
CHUNK_BLOCKS = CHUNK_BYTES // HASH_BLOCK_BYTES


class DiskScan:
    """A disk that is read from its beginning to its end. Used by one thread at a time."""

    def __init__(self, descriptor: int, size: int, key: bytes) -> None:
        self._descriptor = descriptor
        self._size = size
        self._key = key
        # Pages are aligned as direct reads need it.
        self._buffer = mmap.mmap(-1, CHUNK_BYTES)
        self.bytes = 0

    def close(self) -> None:
        """Give the descriptor and the buffer back."""
        os.close(self._descriptor)
        self._buffer.close()

    def look(self, first: int, most: int) -> tuple[Kinds, Hashes]:
        """Kinds and hashes of some blocks from `first` on, at least one and at most `most`.

        A hole of any length is one answer. What cannot be read is UNKNOWN.
        """
        start = first * HASH_BLOCK_BYTES
        hole = (self._next_data(start) - start) // HASH_BLOCK_BYTES
        if hole >= min(most, CHUNK_BLOCKS):
            return self._filled(min(most, hole), ZERO)
        length = min(CHUNK_BYTES, most * HASH_BLOCK_BYTES, self._size - start)
        view = memoryview(self._buffer)[:CHUNK_BYTES]
        try:
            got = self._read(view, start, length)
            if got < length:
                return self._filled(blocks_of(length), UNKNOWN)
            self.bytes += length
            return hash_blocks(view[:length], self._key)
        finally:
            view.release()

    @staticmethod
    def _filled(count: int, kind: int) -> tuple[Kinds, Hashes]:
        return np.full(count, kind, np.uint8), np.zeros((count, 16), np.uint8)

    def _next_data(self, start: int) -> int:
        """The first byte at or after `start` that may not be zero; the disk's end if none."""
        try:
            found = os.lseek(self._descriptor, start, os.SEEK_DATA)
        except OSError as error:
            # Only ENXIO says that nothing follows; what cannot tell holes is all data.
            return self._end() if error.errno == errno.ENXIO else start
        return self._end() if found >= self._size else found

    def _end(self) -> int:
        return blocks_of(self._size) * HASH_BLOCK_BYTES

    def _read(self, view: memoryview, start: int, length: int) -> int:
        """Bytes read; fewer than `length` if the disk refuses."""
        got = 0
        while got < length:
            # Whole blocks are asked for, as direct reads need it: the last may come back short.
            with view[got : blocks_of(length) * HASH_BLOCK_BYTES] as part:
                try:
                    count = os.preadv(self._descriptor, [part], start + got)
                except OSError:
                    return got
            if count <= 0:
                return got
            got += count
        return got
