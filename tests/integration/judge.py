"""Says of a restored disk whether it can be that of a moment, from what a witness noted alone.

A sector may hold a write that was issued before the checkpoint was answered, unless another write
of it was issued after that one's answer and was itself answered before the checkpoint was asked
for. So each answered write must be there, nothing later may be, and of writes that were in flight
together either may be the last.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.integration.witness import SECTOR, hashes_of

_REQUEST = np.dtype([("issued", "<i8"), ("first", "<i8"), ("hash", "<i8"), ("count", "<i8")])
_ANSWER = np.dtype([("number", "<i8"), ("at", "<i8")])
_NEVER = np.iinfo(np.int64).max
_CHUNK = 1 << 20
#: Sectors that are worked on at once.
_ROWS = 1 << 20

Array = npt.NDArray[Any]


def hashes_of_file(path: Path) -> Array:
    """The hashes of a disk's sectors."""
    nothing = hashes_of(bytes(_CHUNK))
    zeroes = bytes(_CHUNK)
    parts = []
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            parts.append(nothing if data == zeroes else hashes_of(data))
    return np.frombuffer(b"".join(parts), "<u8").copy()


@dataclass(frozen=True)
class Rows:
    """Writes of single sectors, in columns."""

    sector: Array
    issued: Array
    answered: Array
    value: Array

    def only(self, keep: Array) -> Rows:
        return Rows(self.sector[keep], self.issued[keep], self.answered[keep], self.value[keep])

    def and_then(self, more: Rows) -> Rows:
        pairs = zip(self.columns, more.columns, strict=True)
        return Rows(*(np.concatenate(pair) for pair in pairs))

    @property
    def columns(self) -> tuple[Array, Array, Array, Array]:
        return self.sector, self.issued, self.answered, self.value


class Notes:
    """What a witness has noted up to now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.requests = _records(folder / "requests", _REQUEST)
        self.answered = np.full(len(self.requests), _NEVER)
        answers = _records(folder / "answers", _ANSWER)
        # One that was noted while we read has a request that we did not see: it is later.
        answers = answers[answers["number"] < len(self.requests)]
        self.answered[answers["number"]] = answers["at"]

    def rows(self, which: Array) -> Iterator[Rows]:
        """The sectors of these writes, some at a time."""
        ends = np.cumsum(self.requests["count"][which])
        for part in np.split(which, np.searchsorted(ends, np.arange(_ROWS, _last(ends), _ROWS))):
            if len(part):
                yield self._expanded(part)

    def _expanded(self, which: Array) -> Rows:
        chosen, count = self.requests[which], self.requests["count"][which]
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        with (self._folder / "hashes").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        values = np.frombuffer(mapped, "<u8", len(mapped) // 8)
        return Rows(
            np.repeat(chosen["first"], count) + within,
            np.repeat(chosen["issued"], count),
            np.repeat(self.answered[which], count),
            values[np.repeat(chosen["hash"], count) + within],
        )


def _last(ends: Array) -> int:
    return int(ends[-1]) if len(ends) else 0


def _records(path: Path, kind: np.dtype[Any]) -> Array:
    whole = path.stat().st_size // kind.itemsize
    return np.fromfile(path, kind, whole)


@dataclass(frozen=True)
class Verdict:
    """Which sectors cannot be, and how many had more than one value to choose from."""

    wrong: Array
    open_sectors: int

    def __str__(self) -> str:
        first = self.wrong[:8].tolist()
        return f"{len(self.wrong)} sectors are of another moment, the first {first}"


class Judge:
    """Goes through the notes moment by moment, never back. Holds a few bytes for each sector."""

    def __init__(self, folder: Path, initial: Array) -> None:
        self._folder = folder
        count = len(initial)
        self._upto = 0
        #: When the youngest write was issued that was answered before the moment.
        self._newest = np.zeros(count, np.int64)
        zeroes = np.zeros(count, np.int64)
        self._rows = Rows(np.arange(count), zeroes, zeroes, initial)

    def copy(self) -> Judge:
        """One that stays at this moment."""
        other = Judge(self._folder, self._rows.value[:0])
        other._upto, other._newest, other._rows = self._upto, self._newest.copy(), self._rows
        return other

    def settle(self, asked: int) -> None:
        """Go on to the moment in which a checkpoint was asked for."""
        if asked < self._upto:
            raise ValueError("a judge never goes back")
        notes = Notes(self._folder)
        is_new = (notes.answered >= self._upto) & (notes.answered < asked)
        for more in notes.rows(np.flatnonzero(is_new)):
            np.maximum.at(self._newest, more.sector, more.issued)
            rows = self._rows.and_then(more)
            self._rows = rows.only(rows.answered >= self._newest[rows.sector])
        self._upto = asked

    def judge(self, disk: Array, answered: int) -> Verdict:
        """Whether these hashes may be the disk of a checkpoint that was answered then."""
        if len(disk) != len(self._newest):
            raise ValueError(f"{len(disk)} sectors instead of {len(self._newest)}")
        notes = Notes(self._folder)
        in_flight = (notes.requests["issued"] < answered) & (notes.answered >= self._upto)
        fits = np.zeros(len(disk), bool)
        differ = np.zeros(len(disk), bool)
        settled = np.zeros(len(disk), np.uint64)
        settled[self._rows.sector] = self._rows.value
        for rows in (self._rows, *notes.rows(np.flatnonzero(in_flight))):
            fits[rows.sector[rows.value == disk[rows.sector]]] = True
            differ[rows.sector[rows.value != settled[rows.sector]]] = True
        return Verdict(np.flatnonzero(~fits), int(differ.sum()))


def alter_sector(path: Path, sector: int) -> None:
    """Flip one bit, for a judge that must see it."""
    with path.open("r+b") as file:
        file.seek(sector * SECTOR)
        first = file.read(1)[0]
        file.seek(sector * SECTOR)
        file.write(bytes([first ^ 1]))
