"""The checkpoints of a stream: a month holds half a million, so they stay columns until asked for.

Those of an index object are read from it only when a question reaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from host_agent.wire.errors import WireError
from host_agent.wire.frame import SCOPE_STREAM
from workers.journal.columns import Kinds, pack, unpack

_ID_BYTES = 16
#: One id a row.
Ids = NDArray[np.uint8]
_MARKS: Kinds = {
    "row": ("<u8", True),
    "time": ("<u8", True),
    "scope": ("u1", False),
    "kind": ("u1", False),
}
_COMMITS: Kinds = {"row": ("<u8", True), "seq": ("<u8", True)}


class _Packed(msgspec.Struct, frozen=True):
    marks: bytes
    ids: bytes
    tags: dict[int, str]
    commits: bytes
    commit_ids: bytes


@dataclass(frozen=True)
class Mark:
    """A marker. `time` is the stream's own, nanoseconds UTC; `row` that of its record."""

    row: int
    id: bytes
    time: int
    scope: int
    kind: int
    tag: str | None


@dataclass
class MarkColumns:
    """Markers and commits by row. A commit's `seq` is the stream's position in it."""

    row: NDArray[np.uint64]
    time: NDArray[np.uint64]
    scope: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    ids: Ids
    tags: dict[int, str]
    commit_row: NDArray[np.uint64]
    commit_seq: NDArray[np.uint64]
    commit_ids: Ids

    @staticmethod
    def of(marks: list[Mark], commits: list[tuple[int, bytes, int]]) -> MarkColumns:
        """From single marks, and commits as (row, id, sequence)."""
        return MarkColumns(
            np.array([m.row for m in marks], np.uint64),
            np.array([m.time for m in marks], np.uint64),
            np.array([m.scope for m in marks], np.uint8),
            np.array([m.kind for m in marks], np.uint8),
            _ids(b"".join(m.id for m in marks)),
            {m.row: m.tag for m in marks if m.tag is not None},
            np.array([row for row, _, _ in commits], np.uint64),
            np.array([seq for _, _, seq in commits], np.uint64),
            _ids(b"".join(name for _, name, _ in commits)),
        )

    def cut(self, first_row: int, end_row: int) -> MarkColumns:
        """Only what lies from `first_row` to before `end_row`, rows counted from `first_row`."""
        ends = np.array([first_row, end_row], np.uint64)
        a, b = np.searchsorted(self.row, ends).tolist()
        c, d = np.searchsorted(self.commit_row, ends).tolist()
        base = np.uint64(first_row)
        tags = {r - first_row: t for r, t in self.tags.items() if first_row <= r < end_row}
        return MarkColumns(
            self.row[a:b] - base, self.time[a:b], self.scope[a:b], self.kind[a:b], self.ids[a:b],
            tags, self.commit_row[c:d] - base, self.commit_seq[c:d], self.commit_ids[c:d],
        )  # fmt: skip

    def raised(self, rows: int) -> MarkColumns:
        """The same, `rows` later."""
        base = np.uint64(rows)
        tags = {row + rows: tag for row, tag in self.tags.items()}
        return MarkColumns(
            self.row + base, self.time, self.scope, self.kind, self.ids, tags,
            self.commit_row + base, self.commit_seq, self.commit_ids,
        )  # fmt: skip

    @staticmethod
    def joined(parts: list[MarkColumns]) -> MarkColumns:
        """Several, in the order of their rows."""
        parts = parts or [MarkColumns.of([], [])]
        tags: dict[int, str] = {}
        for part in parts:
            tags.update(part.tags)
        names = [name for name in MarkColumns.__dataclass_fields__ if name != "tags"]
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        return MarkColumns(tags=tags, **joined)

    def packed(self) -> bytes:
        """As an index object keeps it."""
        marks = {name: getattr(self, name) for name in _MARKS}
        commits = {"row": self.commit_row, "seq": self.commit_seq}
        return msgspec.msgpack.encode(
            _Packed(
                pack(marks, _MARKS),
                self.ids.tobytes(),
                dict(sorted(self.tags.items())),
                pack(commits, _COMMITS),
                self.commit_ids.tobytes(),
            )
        )

    @staticmethod
    def unpacked(data: bytes) -> MarkColumns:
        """What `packed` packed; WireError."""
        try:
            found = msgspec.msgpack.decode(data, type=_Packed)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise WireError(f"The markers of an index object are malformed: {error}.") from None
        if len(found.ids) % _ID_BYTES or len(found.commit_ids) % _ID_BYTES:
            raise WireError("The markers of an index object are cut off.")
        ids, commit_ids = _ids(found.ids), _ids(found.commit_ids)
        marks = unpack(found.marks, _MARKS, len(ids))
        commits = unpack(found.commits, _COMMITS, len(commit_ids))
        return MarkColumns(
            marks["row"], marks["time"], marks["scope"], marks["kind"], ids, found.tags,
            commits["row"], commits["seq"], commit_ids,
        )  # fmt: skip

    def mark(self, index: int) -> Mark:
        """One marker."""
        row = int(self.row[index])
        return Mark(
            row,
            self.ids[index].tobytes(),
            int(self.time[index]),
            int(self.scope[index]),
            int(self.kind[index]),
            self.tags.get(row),
        )


def _ids(data: bytes) -> Ids:
    return np.frombuffer(data, np.uint8).reshape(-1, _ID_BYTES)


def _beginning(ids: Ids, prefix: str) -> list[int]:
    """Which ids, as hex, begin so."""
    whole = bytes.fromhex(prefix[: len(prefix) & ~1])
    if len(whole) > _ID_BYTES:
        return []
    fits = (ids[:, : len(whole)] == np.frombuffer(whole, np.uint8)).all(axis=1)
    if len(prefix) % 2:
        if len(whole) == _ID_BYTES:
            return []
        fits &= ids[:, len(whole)] >> 4 == int(prefix[-1], 16)
    found: list[int] = np.flatnonzero(fits).tolist()
    return found


class Marks:
    """All markers and commits of a stream, in order; the newest of an id counts.

    `seq_of` gives the sequence of a row.
    """

    def __init__(self, seq_of: Callable[[int], int]) -> None:
        self._seq_of = seq_of
        self._parts: list[MarkColumns | Callable[[], MarkColumns]] = []
        self._marks: list[Mark] = []
        self._commits: list[tuple[int, bytes, int]] = []

    def add(self, mark: Mark) -> None:
        """The next marker."""
        self._marks.append(mark)

    def commit(self, row: int, name: bytes, seq: int) -> None:
        """A commit that puts this stream at `seq`."""
        self._commits.append((row, name, seq))

    def add_later(self, read: Callable[[], MarkColumns]) -> None:
        """What an index object holds: read when it is asked for."""
        self._flush()
        self._parts.append(read)

    def _flush(self) -> None:
        if self._marks or self._commits:
            self._parts.append(MarkColumns.of(self._marks, self._commits))
            self._marks, self._commits = [], []

    def _newest_first(self) -> Iterator[MarkColumns]:
        self._flush()
        for number in reversed(range(len(self._parts))):
            part = self._parts[number]
            if not isinstance(part, MarkColumns):
                part = self._parts[number] = part()
            yield part

    def between(self, first_row: int, end_row: int) -> MarkColumns:
        """Everything of some rows, counted from the first of them."""
        parts = [part.cut(first_row, end_row) for part in self._newest_first()]
        return MarkColumns.joined(parts[::-1])

    def newest(self, count: int | None = None) -> list[Mark]:
        """The newest that exist, newest first; all of them by default."""
        found: list[Mark] = []
        seen: set[bytes] = set()
        commits: dict[bytes, int] = {}
        for part in self._newest_first():
            for at in reversed(range(len(part.commit_ids))):
                commits.setdefault(part.commit_ids[at].tobytes(), int(part.commit_seq[at]))
            for index in reversed(range(len(part.ids))):
                mark = part.mark(index)
                if mark.id not in seen:
                    seen.add(mark.id)
                    if mark.scope == SCOPE_STREAM or commits.get(mark.id) == self._seq_of(mark.row):
                        found.append(mark)
                        if count is not None and len(found) >= count:
                            return found
        return found

    def with_id(self, prefix: str) -> list[Mark]:
        """Those whose ids begin with these hex digits; oldest first."""
        return self._fitting(lambda part: _beginning(part.ids, prefix))

    def with_tag(self, tag: str) -> list[Mark]:
        """Those of a tag, oldest first."""

        def rows(part: MarkColumns) -> list[int]:
            wanted = sorted(row for row, text in part.tags.items() if text == tag)
            found: list[int] = np.searchsorted(part.row, np.array(wanted, np.uint64)).tolist()
            return found

        return self._fitting(rows)

    def _fitting(self, choose: Callable[[MarkColumns], list[int]]) -> list[Mark]:
        parts = list(self._newest_first())
        found = [part.mark(i) for part in parts for i in reversed(choose(part))]
        wanted = {mark.id for mark in found}
        newest: dict[bytes, int] = {}
        commits: dict[bytes, int] = {}
        for part in parts:
            for name in wanted:
                if name not in newest and (at := _beginning(part.ids, name.hex())):
                    newest[name] = int(part.row[at[-1]])
                if name not in commits and (at := _beginning(part.commit_ids, name.hex())):
                    commits[name] = int(part.commit_seq[at[-1]])
        return [
            mark for mark in reversed(found)
            if newest[mark.id] == mark.row
            and (mark.scope == SCOPE_STREAM or commits.get(mark.id) == self._seq_of(mark.row))
        ]  # fmt: skip
