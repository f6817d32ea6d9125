"""What a journal offers: its disks, its checkpoints, its history, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from workers.journal.errors import SelectorError
from workers.journal.points import Point, list_points, resolve
from workers.journal.reader import Journal
from workers.journal.retention import HOUR_SECONDS
from workers.journal.selectors import format_time
from workers.journal.timeline import FOLDED, Checkpoint, Generation


@dataclass(frozen=True)
class History:
    """A stretch of moments without a gap: from one sequence to another of a generation."""

    generation: str
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int


@dataclass(frozen=True)
class Gap:
    """A sync interval: no moment after `after` and before `until` can be chosen (nanoseconds UTC).

    `after` None: nothing came before. `until` None: it is not over.
    """

    generation: str
    cause: str
    after: int | None
    until: int | None

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "generation": self.generation,
            "cause": self.cause,
            "after": None if self.after is None else format_time(self.after),
            "until": None if self.until is None else format_time(self.until),
        }


@dataclass(frozen=True)
class Listing:
    """One stream. Times in nanoseconds UTC."""

    journal: Journal
    state: str
    newest: Point | None
    disks: list[tuple[str, int]]
    checkpoints: list[Checkpoint]
    history: list[History]
    gaps: list[Gap]

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        journal, newest = self.journal, self.newest
        return {
            "group": journal.identity.group,
            "host": journal.identity.host,
            "state": self.state,
            "segments": journal.segments,
            "records": journal.rows,
            "newest": newest.as_dict() if newest else None,
            "disks": [{"name": name, "size": size} for name, size in self.disks],
            "checkpoints": [_checkpoint(journal, c) for c in self.checkpoints],
            "history": [
                {
                    "generation": stretch.generation,
                    "first_seq": stretch.first_seq,
                    "last_seq": stretch.last_seq,
                    "first_time": format_time(stretch.first_time),
                    "last_time": format_time(stretch.last_time),
                }
                for stretch in self.history
            ],
            "gaps": [gap.as_dict() for gap in self.gaps],
            "begins": _begins(journal),
            "damage": journal.damage.as_dict() if journal.damage else None,
        }


def _checkpoint(journal: Journal, checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "id": checkpoint.id,
        "time": format_time(checkpoint.time),
        "kind": checkpoint.kind,
        "tag": checkpoint.tag,
        "generation": journal.timeline.generations[checkpoint.generation].hex,
        "seq": checkpoint.seq,
    }


def _begins(journal: Journal) -> dict[str, object] | None:
    """Where the history begins and why; None where nothing was ever given up."""
    if journal.layers is None:
        return None
    boundary = journal.layers.boundary
    return {
        "history_from": format_time(boundary.history_from),
        "reason": boundary.reason,
        "window_hours": boundary.window_seconds / HOUR_SECONDS,
        "first_place": boundary.first_place,
        "set_at": format_time(boundary.set_at),
    }


def summarise(journal: Journal) -> Listing:
    """What the journal offers, its damage included."""
    newest = _newest(journal)
    disks: list[tuple[str, int]] = []
    if newest is not None:
        names = journal.timeline.disk_names
        sizes = journal.timeline.disks_at(newest.row)
        disks = [(names[disk], size) for disk, size in sorted(sizes.items())]
    checkpoints, history = list_points(journal), _history(journal)
    gaps = _gaps(journal, history)
    return Listing(journal, _state(journal), newest, disks, checkpoints, history, gaps)


def _newest(journal: Journal) -> Point | None:
    # Damage is told apart; here it must not hide what is left.
    damage, journal.damage = journal.damage, None
    try:
        return resolve(journal, "latest-write")
    except SelectorError:
        return None
    finally:
        journal.damage = damage


def _state(journal: Journal) -> str:
    """`damaged`, `empty`, `syncing`, or what ingest stated last; `unknown` without a statement."""
    if journal.damage is not None:
        return "damaged"
    generations = journal.timeline.generations
    if not generations:
        return "empty"
    if generations[-1].open_sync is not None:
        return "syncing"
    return journal.statement.state if journal.statement is not None else "unknown"


def _history(journal: Journal) -> list[History]:
    found: list[History] = []
    for generation in journal.timeline.generations:
        first = 0
        for sync in generation.syncs:
            if first:
                _add(found, journal, generation, (first, min(sync.begin - 1, sync.last_good)))
            first = sync.end or 0
        if first:
            _add(found, journal, generation, (first, generation.last_seq))
    return found


def _gaps(journal: Journal, history: list[History]) -> list[Gap]:
    """All sync intervals, oldest first. What was folded is told by where the history begins."""
    found: list[Gap] = []
    names = [generation.hex for generation in journal.timeline.generations]
    for number, generation in enumerate(journal.timeline.generations):
        for sync in generation.syncs:
            if sync.cause == FOLDED:
                continue
            before = [
                stretch
                for stretch in history
                if (names.index(stretch.generation), stretch.last_seq) < (number, sync.begin)
            ]
            until = None if sync.end is None else journal.time(generation.row(sync.end))
            after = before[-1].last_time if before else None
            found.append(Gap(generation.hex, sync.cause, after, until))
    return found


def _add(
    found: list[History], journal: Journal, generation: Generation, span: tuple[int, int]
) -> None:
    first, last = span
    if first > last:
        return
    ends = journal.time(generation.row(first)), journal.time(generation.row(last))
    found.append(History(generation.hex, first, last, *ends))
