"""From a selector to a moment of the journal, or to an error that names the nearest choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from host_agent.wire.record import Flag
from workers.journal import selectors
from workers.journal.errors import (
    AmbiguousSelector,
    BadSelector,
    BeforeHistory,
    HandedOver,
    InsideRequest,
    InsideSync,
    MomentGone,
    NoSuchCheckpoint,
    NothingToRestore,
    NotStored,
    SelectorError,
)
from workers.journal.reader import Journal
from workers.journal.selectors import (
    ByCheckpoint,
    BySeq,
    ByTag,
    ByTime,
    Latest,
    LatestWrite,
    Selector,
    format_time,
)
from workers.journal.timeline import FOLDED, Checkpoint, Generation, SyncInterval

_HINT_SHOWN = 3
_TIME_MAX = (1 << 64) - 1
_SCAN_ROWS = 4096


@dataclass(frozen=True)
class Quiet:
    """What is known of the stream between the moment chosen and the time asked for.

    `state`: `exact` (the stream went on after that time, with nothing in between), `idle` (stated
    by ingest up to `until`), `syncing` or `cut_off` (what happened after `since` is not known).
    Nanoseconds UTC.
    """

    state: str
    since: int
    until: int | None

    def sentence(self) -> str:
        """For people."""
        since = format_time(self.since)
        if self.state == "exact":
            return "nothing was written between it and the time asked for"
        if self.state == "idle" and self.until is not None:
            return f"the stream was idle from then on, stated up to {format_time(self.until)}"
        if self.state == "syncing":
            return f"the stream was syncing after {since}: until it was over nothing can be chosen"
        return f"the stream was cut off after {since}: what was written later is not in the journal"


@dataclass(frozen=True)
class Point:
    """A moment that can be restored. `time` is the stream's own, nanoseconds UTC."""

    generation: int
    generation_name: str
    seq: int
    row: int
    time: int
    checkpoint: Checkpoint | None
    quiet: Quiet | None
    damaged_ranges: tuple[tuple[int, int, int], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        quiet = self.quiet
        return {
            "generation": self.generation_name,
            "seq": self.seq,
            "time": format_time(self.time),
            "checkpoint": self.checkpoint.id if self.checkpoint else None,
            "tag": self.checkpoint.tag if self.checkpoint else None,
            "kind": self.checkpoint.kind if self.checkpoint else None,
            "stream": quiet.state if quiet else None,
            "stream_until": format_time(quiet.until) if quiet and quiet.until else None,
            "unreadable": [list(r) for r in self.damaged_ranges],
        }


def resolve(journal: Journal, text: str) -> Point:
    """The one moment that the text names. SelectorError, or the journal's damage if it lies
    there."""
    meant = selectors.parse(text)
    if len(meant) == 1:
        return _Finder(journal).find(meant[0])
    return _resolve_bare(journal, text, meant)


def _resolve_bare(journal: Journal, text: str, meant: list[Selector]) -> Point:
    finder = _Finder(journal)
    found: list[tuple[Selector, Point]] = []
    for selector in meant:
        try:
            found.append((selector, finder.find(selector)))
        except SelectorError as error:
            if isinstance(error, AmbiguousSelector):
                raise
    if len(found) == 1:
        return found[0][1]
    if not found:
        raise BadSelector(
            f"{text!r:.60} names no moment of this journal.", hint=finder.choices_hint()
        )
    ways = ", ".join(_WAYS[type(selector)] for selector, _ in found)
    raise AmbiguousSelector(
        f"{text!r:.60} may be {ways}.", hint="Write checkpoint:, tag:, time: or seq: before it."
    )


_WAYS: dict[type[Selector], str] = {
    ByCheckpoint: "a checkpoint's id",
    ByTag: "a tag",
    ByTime: "a time",
    BySeq: "a sequence",
    Latest: "the newest checkpoint",
    LatestWrite: "the newest write",
}


class _Finder:
    """Answers for one journal; nothing is kept but what is already in memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._timeline = journal.timeline
        self._generations = [g for g in journal.timeline.generations if g.last_seq]

    def find(self, selector: Selector) -> Point:
        """The moment; SelectorError, or the journal's damage where the answer would lie beyond
        it."""
        match selector:
            case ByCheckpoint(id=start):
                return self._one(self._whole(self._timeline.checkpoints_by_id(start)), selector)
            case ByTag(tag=tag):
                return self._one(self._whole(self._timeline.checkpoints_by_tag(tag)), selector)
            case ByTime(time=time):
                return self._by_time(time)
            case BySeq(seq=seq, generation=name):
                return self._by_seq(seq, name)
            case Latest():
                return self._latest()
            case LatestWrite():
                return self._latest_write()

    # -- checkpoints

    def _whole(self, found: list[Checkpoint]) -> list[Checkpoint]:
        return [c for c in found if self._is_whole(c)]

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        """Not of a frame that was damaged behind it."""
        return checkpoint.seq <= self._timeline.generations[checkpoint.generation].last_seq

    def _newest_checkpoints(self) -> list[Checkpoint]:
        """The newest few, newest first. A damaged frame holds the last ones of all, at most."""
        found = self._whole(self._timeline.checkpoints(_HINT_SHOWN))
        if len(found) < _HINT_SHOWN:
            found = self._whole(self._timeline.checkpoints())[-_HINT_SHOWN:]
        return found[::-1]

    def _one(self, fitting: list[Checkpoint], selector: Selector) -> Point:
        if len(fitting) == 1:
            return self._at_checkpoint(fitting[0])
        what = _name(selector)
        if fitting:
            raise AmbiguousSelector(
                f"{what} names {len(fitting)} checkpoints.",
                hint="Choose one: " + ", ".join(map(_say, fitting[-_HINT_SHOWN:])) + ".",
            )
        self._raise_damage()
        raise NoSuchCheckpoint(f"No checkpoint {what} can be restored.", hint=self.choices_hint())

    def _at_checkpoint(self, checkpoint: Checkpoint) -> Point:
        generation = self._journal.timeline.generations[checkpoint.generation]
        return self._point(generation, checkpoint.seq, checkpoint)

    def _latest(self) -> Point:
        self._raise_damage()
        checkpoints = self._newest_checkpoints()
        if checkpoints:
            newest = checkpoints[0]
            generation = self._journal.timeline.generations[newest.generation]
            quiet = self._quiet(generation, newest.seq, newest.seq, newest.time)
            return self._point(generation, newest.seq, newest, quiet)
        if self._newest() is None:
            self._raise_nothing()
        raise NoSuchCheckpoint(
            "The journal holds no checkpoint.",
            hint="latest-write is the newest moment without one.",
        )

    def choices_hint(self) -> str:
        """The newest checkpoints, or what else there is to choose."""
        checkpoints = self._newest_checkpoints()
        if checkpoints:
            newest = ", ".join(map(_say, checkpoints))
            return f"The newest are {newest}; `restore list` or `checkpoint list` shows all."
        if self._newest() is not None:
            return "The journal holds no checkpoint; choose a time, a sequence or latest-write."
        return "The journal holds no moment that could be restored yet."

    # -- positions

    def _latest_write(self) -> Point:
        self._raise_damage()
        newest = self._newest()
        if newest is None:
            self._raise_nothing()
        generation, seq = newest
        since = self._journal.time(generation.row(seq))
        quiet = self._quiet(generation, seq, generation.last_seq, since)
        if generation is not self._generations[-1]:
            quiet = Quiet("syncing", since, None)
        return self._point(generation, seq, None, quiet)

    def _newest(self) -> tuple[Generation, int] | None:
        for generation in reversed(self._generations):
            seq = self._selectable_before(generation, generation.last_seq)
            if seq:
                return generation, seq
        return None

    def _raise_nothing(self) -> NoReturn:
        generation = self._generations[-1] if self._generations else None
        sync = generation.open_sync if generation else None
        if sync is not None:
            raise NothingToRestore(
                f"The first sync of {self._journal.identity} is not over: nothing is complete.",
                hint="Wait for the end of the sync; `holdfast-agent status` shows how far it is.",
                retryable=True,
            )
        raise NothingToRestore(
            f"The journal of {self._journal.identity} holds no moment to restore."
        )

    def _by_seq(self, seq: int, name: str) -> Point:
        fitting = [g for g in self._generations if g.hex.startswith(name)]
        if name and len(fitting) != 1:
            known = ", ".join(g.hex[:8] for g in self._generations)
            raise BadSelector(
                f"{len(fitting)} generations begin with {name}.", hint=f"There are: {known}."
            )
        if not fitting:
            self._raise_damage()
            self._raise_nothing()
        generation = fitting[-1]
        if seq > generation.last_seq:
            if generation is self._generations[-1]:
                self._raise_damage()
            raise NotStored(
                f"Sequence {seq} is beyond what the journal holds.",
                hint=self._near(generation, seq),
            )
        if seq and generation.is_gone(seq):
            raise self._gone(f"Sequence {seq}")
        sync = _sync_at(generation, seq) if seq else None
        if sync is not None and sync.cause == FOLDED:
            sync = None  # a kept checkpoint
        if seq == 0 or sync is not None:
            raise InsideSync(
                f"Sequence {seq} lies inside a sync: the disk never looked like that.",
                hint=self._near(generation, seq),
            )
        if self._has_more(generation, seq):
            raise InsideRequest(
                f"Sequence {seq} lies between the pieces of one request.",
                hint=self._near(generation, seq),
            )
        return self._point(generation, seq)

    def _near(self, generation: Generation, seq: int) -> str:
        choices = [
            f"seq:{near}"
            for near in (
                self._selectable_before(generation, min(seq, generation.last_seq)),
                self._selectable_after(generation, seq),
            )
            if near
        ]
        if not choices:
            return "No sequence of this generation can be chosen."
        return "The nearest that can be chosen: " + ", ".join(choices) + "."

    def _by_time(self, time: int) -> Point:
        was_syncing = False
        for generation in reversed(self._generations):
            start = generation.first_seq
            rows = generation.row(start), generation.row(generation.last_seq) + 1
            count = self._journal.rows_until(*rows, min(time, _TIME_MAX))
            newest = start - 1 + count if count else 0
            seq = self._selectable_before(generation, newest) if newest else 0
            if not seq:
                was_syncing = was_syncing or newest > 0
                continue
            quiet = self._quiet(generation, seq, newest, time)
            if was_syncing:
                quiet = Quiet("syncing", quiet.since, None)
            if quiet.state == "cut_off":
                self._raise_damage()
            return self._point(generation, seq, None, quiet)
        oldest = self._first()
        if oldest is None:
            self._raise_damage()
            self._raise_nothing()
        generation, seq = oldest
        first_time = format_time(self._journal.time(generation.row(seq)))
        if self._journal.layers is not None:
            raise self._gone(format_time(time))
        raise BeforeHistory(
            f"{format_time(time)} lies before the first moment that can be restored.",
            hint=f"The first is time:{first_time}.",
        )

    def _gone(self, what: str) -> SelectorError:
        """The moment was given up: say where the history begins, and what older ones are kept."""
        first = self._first()
        begins = "It has no moment yet that can be chosen"
        if first is not None:
            time = self._journal.time(first[0].row(first[1]))
            begins = f"It begins at time:{format_time(time)}"
        generations = self._journal.timeline.generations
        found = self._whole(self._timeline.checkpoints())
        kept = [c for c in found if c.seq < generations[c.generation].first_seq]
        older = ", ".join(map(_say, kept[-_HINT_SHOWN:]))
        return MomentGone(
            f"{what} lies before the history that is kept.",
            hint=begins + (f"; of older moments these are kept: {older}." if kept else "."),
        )

    def _quiet(self, generation: Generation, seq: int, newest: int, time: int) -> Quiet:
        """What is known from `seq` up to `time`; `newest` is the last sequence not after it."""
        since = self._journal.time(generation.row(seq))
        sync = next((s for s in generation.syncs if seq < s.begin <= newest + 1), None)
        if sync is not None and sync.begin <= newest:
            return Quiet("syncing", since, None)
        statement = self._journal.statement
        if statement is not None and (statement.generation, statement.seq) == (generation.hex, seq):
            if statement.state == "recording" and statement.time >= time:
                return Quiet("idle", since, statement.time)
            if statement.state in ("dirty", "syncing"):
                return Quiet("syncing", since, statement.time)
        # A BEGIN that follows says that writes were missed before it, and not since when.
        followed = newest < generation.last_seq and sync is None
        return Quiet("exact", since, time) if followed else Quiet("cut_off", since, None)

    def _first(self) -> tuple[Generation, int] | None:
        for generation in self._generations:
            seq = self._selectable_after(generation, 0)
            if seq:
                return generation, seq
        return None

    def _selectable_before(self, generation: Generation, seq: int) -> int:
        """The newest sequence not after `seq` that can be chosen; 0 if there is none."""
        while seq > 0:
            sync = _sync_at(generation, seq)
            if sync is not None:
                seq = min(sync.begin - 1, sync.last_good)
                continue
            low = max(generation.first_seq - 1, seq - _SCAN_ROWS)
            _, flags = self._journal.times(generation.row(low + 1), generation.row(seq) + 1)
            whole = np.flatnonzero((flags.astype(np.uint8) & int(Flag.MORE)) == 0)
            found = low + 1 + int(whole[-1]) if len(whole) else low
            if found == seq:
                return seq
            seq = found
        return 0

    def _selectable_after(self, generation: Generation, seq: int) -> int:
        """The oldest sequence after `seq` that can be chosen; 0 if there is none."""
        seq += 1
        while seq <= generation.last_seq:
            sync = _sync_at(generation, seq)
            if sync is None and not self._has_more(generation, seq):
                return seq
            if sync is not None and sync.end is None and seq >= sync.begin:
                return 0
            seq = sync.end if sync is not None and sync.end is not None else seq + 1
        return 0

    def _has_more(self, generation: Generation, seq: int) -> bool:
        row = generation.row(seq)
        return bool(int(self._journal.times(row, row + 1)[1][0]) & Flag.MORE)

    # -- the answer

    def _point(
        self,
        generation: Generation,
        seq: int,
        checkpoint: Checkpoint | None = None,
        quiet: Quiet | None = None,
    ) -> Point:
        if generation.handover is not None and generation.handover <= seq:
            raise HandedOver(
                "A disk of this stream was handed over from another stream before this moment.",
                hint="Choose a moment before the handover.",
            )
        row = generation.row(seq)
        time = self._journal.time(row)
        past = [s for s in generation.syncs if s.end is not None and s.end <= seq]
        ranges = past[-1].unreadable if past else ()
        if seq in generation.kept:
            ranges = generation.kept[seq].unreadable
        return Point(generation.index, generation.hex, seq, row, time, checkpoint, quiet, ranges)

    def _raise_damage(self) -> None:
        if self._journal.damage is not None:
            raise self._journal.damage


def _sync_at(generation: Generation, seq: int) -> SyncInterval | None:
    """The interval in which `seq` cannot be chosen: after its last good position, before its
    END."""
    for sync in generation.syncs:
        if min(sync.begin - 1, sync.last_good) < seq and (sync.end is None or seq < sync.end):
            return sync
    return None


def _name(selector: Selector) -> str:
    return (
        f"tag:{selector.tag}" if isinstance(selector, ByTag) else str(getattr(selector, "id", ""))
    )


def _say(checkpoint: Checkpoint) -> str:
    tag = f" ({checkpoint.tag})" if checkpoint.tag else ""
    return f"checkpoint:{checkpoint.id} at {format_time(checkpoint.time)}{tag}"


def list_points(journal: Journal) -> list[Checkpoint]:
    """The checkpoints that can be chosen, oldest first."""
    last = {g.index: g.last_seq for g in journal.timeline.generations}
    return [c for c in journal.timeline.checkpoints() if c.seq <= last.get(c.generation, 0)]
