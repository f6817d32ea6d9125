"""Compares what the journal gives back with what truly happened: byte for byte, or a named error.

The restoring side is the product's own: reader, selectors, maps, fetching. The other side is the
History, which knows nothing of records or of their order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from tests.sim.history import History, Images, Point
from workers.journal.errors import NoSuchStream, SelectorError
from workers.journal.journal import Journal
from workers.journal.moment import open_at
from workers.journal.pitmap import get_map
from workers.journal.points import Point as Moment
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.restore.fetch import FrameCache
from workers.storage.port import ObjectStore


class Broken(AssertionError):
    """An invariant does not hold. `invariant` names it."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant


@dataclass(frozen=True)
class Question:
    """What is asked of a journal. `tolerant`: named errors are right answers, too."""

    store: ObjectStore
    identity: Identity
    tenant_key: TenantKey
    histories: Sequence[History]
    rng: random.Random
    count: Callable[[str], None]
    use_index: bool = False
    tolerant: bool = False
    points: int = 4
    is_given_up: Callable[[bytes, int], bool] = lambda _generation, _seq: False


@dataclass
class Answer:
    """The points that were restored: their bytes, by disk."""

    found: dict[Point, Images] = field(default_factory=dict)
    newest: Point | None = None


def restore(ask: Question, journal: Journal, text: str) -> tuple[Point, Images]:
    """A point's bytes, as a provider would put them together; HoldfastError."""
    point = resolve(journal, text)
    if not ask.use_index and journal.is_open(point.row):
        return _read(journal, point)
    opened, point = open_at(ask.store, ask.identity, ask.tenant_key, text)
    with opened:
        return _read(opened, point)


def _read(journal: Journal, point: Moment) -> tuple[Point, Images]:
    frames = FrameCache(journal)
    made = []
    with_map = get_map(journal, point)
    try:
        for disk in sorted(with_map.disks, key=lambda disk: disk.name):
            image = bytearray(disk.size)
            for start, length, frame, at in with_map.find(disk, 0, disk.size).tolist():
                image[start : start + length] = memoryview(frames.get(frame))[at : at + length]
            made.append(bytes(image))
    finally:
        with_map.close()
    return (bytes.fromhex(point.generation_name), point.seq), tuple(made)


def judge(ask: Question) -> Answer:
    """Open the journal, restore points of every kind, compare. Broken where anything is wrong."""
    try:
        journal = open_journal(ask.store, ask.identity, ask.tenant_key)
    except NoSuchStream:
        if not ask.tolerant:
            _check_acknowledged(ask, {})
        return Answer()
    except HoldfastError as error:
        return _excuse(ask, error)
    with journal:
        if journal.damage is not None:
            if not ask.tolerant:
                raise Broken("I2", f"{ask.identity}: {journal.damage.message}")
            ask.count("damage_named")
        elif not ask.tolerant:
            last = {g.name: g.last_seq for g in journal.timeline.generations}
            _check_acknowledged(ask, last)
        return _compare(ask, journal)


def _excuse(ask: Question, error: HoldfastError) -> Answer:
    if not ask.tolerant:
        raise Broken("I3", f"{ask.identity} does not open: {error!r}") from error
    ask.count("damage_named")
    return Answer()


def _check_acknowledged(ask: Question, last: dict[bytes, int]) -> None:
    """What an agent was told is stored must be there."""
    for history in ask.histories:
        for generation in history.generations.values():
            is_over = ask.is_given_up(generation.name, generation.freed)
            if generation.freed > last.get(generation.name, 0) and not is_over:
                raise Broken(
                    "I2",
                    f"{ask.identity}: {generation.freed} of {generation.name.hex()[:8]} was "
                    f"acknowledged, the journal has {last.get(generation.name, 0)}",
                )


def _compare(ask: Question, journal: Journal) -> Answer:
    answer = Answer()
    texts = _texts(ask, journal)
    for text, said in texts:
        may = [h.count_at(said) >= 0 for h in ask.histories if said and said[0] in h.generations]
        try:
            point, images = restore(ask, journal, text)
        except SelectorError as error:
            if said is not None and ask.is_given_up(*said):
                ask.count("given_up")
            elif said is not None and may and all(may) and not ask.tolerant:
                raise Broken("I3", f"{ask.identity} {text} is a point: {error!r}") from error
            ask.count(f"refused_{error.code}")
            continue
        except HoldfastError as error:
            _excuse(ask, error)
            continue
        if said is not None and point != said:
            raise Broken("I3", f"{ask.identity} {text} gave {point[1]}")
        if said is not None and not any(may):
            raise Broken("I3", f"{ask.identity} {text} was offered and never was a point")
        answer.found[point] = images
        if text == "latest-write":
            answer.newest = point
    _check_equal(ask, answer)
    return answer


def _texts(ask: Question, journal: Journal) -> list[tuple[str, Point | None]]:
    """Selectors to try, and the position that each must give."""
    rng = ask.rng
    generations = [g for g in journal.timeline.generations if g.last_seq]
    offered = list(journal.timeline.checkpoints())
    found: list[tuple[str, Point | None]] = [("latest-write", None)]
    for checkpoint in rng.sample(offered, min(len(offered), ask.points)):
        generation = journal.timeline.generations[checkpoint.generation]
        if checkpoint.seq <= generation.last_seq:
            position = (generation.name, checkpoint.seq)
            known = {h.checkpoints.get(checkpoint.id) for h in ask.histories}
            if position not in known:
                raise Broken("I3", f"{ask.identity}: nobody made checkpoint {checkpoint.id}")
            found.append((f"checkpoint:{checkpoint.id}", position))
    for _ in range(ask.points if generations else 0):
        generation = rng.choice(generations)
        seq = rng.randrange(1, generation.last_seq + 1)
        found.append((f"seq:{generation.hex}/{seq}", (generation.name, seq)))
    return found


def _check_equal(ask: Question, answer: Answer) -> None:
    """All points of a generation must be those of one history that is known."""
    for generation in {point[0]: None for point in answer.found}:
        points = [point for point in answer.found if point[0] == generation]
        wrong = [
            found
            for history in ask.histories
            if generation in history.generations
            for found in [_first_wrong(history, points, answer)]
        ]
        if not wrong:
            raise Broken("I7", f"{ask.identity}: nobody began {generation.hex()[:8]}")
        if None not in wrong:
            raise Broken("I4", f"{ask.identity}: {wrong[0]}")
        ask.count("points_compared")


def _first_wrong(history: History, points: Iterable[Point], answer: Answer) -> str | None:
    counts = {point: history.count_at(point) for point in points}
    if min(counts.values()) < 0:
        return "a point that this history does not have"
    truth = history.images(list(counts.values()))
    for point, count in counts.items():
        for disk, image in enumerate(answer.found[point]):
            expected = truth[count][disk]
            if image != expected:
                at = next(
                    (i for i, (a, b) in enumerate(zip(image, expected, strict=False)) if a != b),
                    min(len(image), len(expected)),
                )
                return (
                    f"sequence {point[1]} of {point[0].hex()[:8]} differs on disk {disk} at {at}: "
                    f"{image[at : at + 24]!r} instead of {expected[at : at + 24]!r}"
                )
    return None
