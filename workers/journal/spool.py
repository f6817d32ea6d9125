"""Columns that live in unlinked temporary files: as large as the journal is long, and never all in
memory.

The first rows stay in memory. More are appended to files with ordinary writes, so that a full file
system is an error and not a signal; they are read through a mapping, which the kernel may drop and
read again.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from workers.journal.errors import SpoolFull

Column = NDArray[Any]


#: Rows are kept in memory up to so many bytes: most journals and most tails need no file.
MEMORY_BYTES = 32 << 20


class ColumnSpool:
    """Equally long columns by name. One writer; readers, of several threads, only after the last
    append."""

    def __init__(self, kinds: Mapping[str, str], directory: Path | None = None) -> None:
        """`kinds` gives each column's numpy type; `directory` holds the files (None: the
        system's)."""
        self._kinds = {name: np.dtype(kind) for name, kind in kinds.items()}
        self._directory = directory
        self._lock = threading.Lock()
        self._files: dict[str, IO[bytes]] = {}
        self._held: dict[str, list[Column]] = {name: [] for name in kinds}
        self._held_bytes = 0
        self._maps: dict[str, Column] = {}
        self.rows = 0

    def append(self, columns: Mapping[str, Column]) -> None:
        """Add rows; all columns must be given and equally long. SpoolFull."""
        count = len(next(iter(columns.values())))
        for name, kind in self._kinds.items():
            # A copy where it is a view: what it is a view of would be held as well.
            column = np.array(columns[name], dtype=kind)
            assert len(column) == count, name
            self._held[name].append(column)
            self._held_bytes += column.nbytes
        self.rows += count
        self._maps.clear()
        if self._held_bytes > MEMORY_BYTES:
            self._spill()

    def _spill(self) -> None:
        try:
            for name in self._kinds:
                if name not in self._files:
                    # Closed in close(); the names are gone at once.
                    self._files[name] = tempfile.TemporaryFile(  # noqa: SIM115
                        dir=self._directory, prefix=".holdfast-"
                    )
                for column in self._held[name]:
                    self._files[name].write(column.view(np.uint8).data)
                self._files[name].flush()
                self._held[name].clear()
        except OSError as error:
            self.close()
            raise no_room(error) from error
        self._held_bytes = 0

    def column(self, name: str) -> Column:
        """All rows of a column, read-only. SpoolFull."""
        with self._lock:
            found = self._maps.get(name)
            if found is None:
                if self._files and self._held_bytes:
                    self._spill()
                found = self._map(name)
                self._maps[name] = found
            return found

    def _map(self, name: str) -> Column:
        if not self.rows:
            return np.empty(0, self._kinds[name])
        if self._files:
            shape = (self.rows,)
            mapped = np.memmap(self._files[name], self._kinds[name], mode="r", shape=shape)
            return mapped.view(np.ndarray)
        held = self._held[name]
        if len(held) > 1:
            held[:] = [np.concatenate(held)]
        return held[0]

    def rows_of(self, name: str, first: int, end: int) -> Column:
        """Some rows of a column. They are read from the file, so that no mapping holds its pages
        in memory. SpoolFull."""
        if not self._files:
            return self.column(name)[first:end]
        with self._lock:
            if self._held_bytes:
                self._spill()
        kind = self._kinds[name]
        length, at = (end - first) * kind.itemsize, first * kind.itemsize
        try:
            data = os.pread(self._files[name].fileno(), length, at)
        except OSError as error:
            raise no_room(error) from error
        return np.frombuffer(data, kind)

    def close(self) -> None:
        """Give the space back. Columns that were handed out stay readable while they are referred
        to."""
        self._maps.clear()
        self._held = {name: [] for name in self._kinds}
        for file in self._files.values():
            file.close()
        self._files.clear()


class Runs:
    """Rows put into buckets without knowing their counts beforehand.

    Each batch is sorted by bucket and appended; a bucket is then one slice of each batch, in the
    order in which the rows came.
    """

    def __init__(
        self, kinds: Mapping[str, str], buckets: int, directory: Path | None = None
    ) -> None:
        """At most 65,536 buckets (their numbers are sorted as 16-bit integers, by radix)."""
        assert 1 <= buckets <= 1 << 16, buckets
        self._spool = ColumnSpool(kinds, directory)
        self._names = tuple(kinds)
        self._edges: list[Column] = []
        self.buckets = buckets

    def append(self, bucket: Column, columns: Mapping[str, Column]) -> None:
        """Add a batch whose row i belongs to `bucket[i]`."""
        order = np.argsort(bucket.astype(np.uint16), kind="stable")
        counts = np.bincount(bucket, minlength=self.buckets)
        edges = np.zeros(self.buckets + 1, np.int64)
        np.cumsum(counts, out=edges[1:])
        self._edges.append(edges + self._spool.rows)
        self._spool.append({name: columns[name][order] for name in self._names})

    def bucket(self, number: int) -> dict[str, Column]:
        """All rows of a bucket in the order of their arrival, as arrays in memory."""
        slices = [(int(e[number]), int(e[number + 1])) for e in self._edges]
        return {
            name: np.concatenate([self._spool.rows_of(name, a, b) for a, b in slices])
            if slices
            else self._spool.column(name)
            for name in self._names
        }

    def close(self) -> None:
        """Give the space back."""
        self._spool.close()


def no_room(error: OSError) -> SpoolFull:
    """The error for a temporary file that cannot be written or read."""
    return SpoolFull(
        f"The temporary files of the restore cannot be written: {error.strerror}.",
        hint="Make room, or point TMPDIR at a larger file system.",
        retryable=True,
    )
