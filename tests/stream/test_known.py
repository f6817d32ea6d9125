"""What is believed to be in the journal: never more than is there, whatever came after the list."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import numpy as np
import pytest

from host_agent.stream.errors import NotComparable
from host_agent.stream.known import Known
from host_agent.wire.errors import WireError
from host_agent.wire.hashlist import Directory, ListedDisk
from host_agent.wire.limits import HASH_BLOCK_BYTES as BLOCK
from host_agent.wire.record import RECORD, Records
from tests.model.model import (
    BEGIN,
    DETACH,
    DISK,
    END,
    RESIZE,
    SYNC,
    SYNC_ZERO,
    TRIM,
    WRITE,
    ZERO,
    Event,
    Model,
)

pytestmark = pytest.mark.invariant("I2")

NAMES = ("root", "data", "swap")


@dataclass
class Tape:
    """Random records of a stream: a model that replays them, and the rows as frames have them."""

    rng: random.Random
    model: Model
    names: dict[int, str]
    sizes: dict[str, int]
    generation: int = 0
    rows: list[tuple[int, ...]] | None = None
    bodies: dict[int, bytes] | None = None

    def flush(self) -> tuple[bytes, Records, dict[int, bytes]]:
        """What came since the last call."""
        rows, bodies = self.rows or [], self.bodies or {}
        self.rows, self.bodies = [], {}
        return self.name(), np.array(rows, RECORD), bodies

    def name(self) -> bytes:
        return bytes([self.generation]) * 16

    def record(self, event: Event) -> int:
        seq = self.model.apply(event)
        body = json.dumps(event.body).encode() if event.op >= BEGIN else event.data
        if event.op >= BEGIN:
            assert self.bodies is not None
            self.bodies[seq] = body
        length = 0 if event.op == RESIZE else event.length
        assert self.rows is not None
        row = (seq, seq, event.offset, event.aux, length, 0, len(body), event.disk, event.op, 0)
        self.rows.append(row)
        return seq

    def begin(self, predecessor: bytes | None = None) -> None:
        seq = self.model.seq
        disks = [{"disk": n, "name": d, "size": self.sizes[d]} for n, d in self.names.items()]
        body = {
            "cause": "forced",
            "generation": self.name().hex(),
            "predecessor": predecessor.hex() if predecessor else None,
            "last_good": seq,
            "disks": disks,
        }
        self.record(Event(BEGIN, aux=seq, body=body))

    def renew(self, *, goes_on: bool = True) -> None:
        before = self.name()
        self.generation += 1
        self.model.start_generation(keep=goes_on)
        self.begin(before if goes_on else None)
        self.record(Event(END, body={"bytes": 0, "unreadable": []}))

    def step(self) -> None:
        """Something that a stream may do; mostly writes."""
        number = self.rng.choice(list(self.names))
        size = self.sizes[self.names[number]]
        op = self.rng.choice(
            [WRITE] * 8 + [ZERO, TRIM, SYNC, SYNC_ZERO, RESIZE, DETACH, DISK, BEGIN]
        )
        at = self.rng.randrange(0, size, 512)
        length = min(512 * self.rng.choice([1, 1, 8, 200]), size - at)
        if op in (WRITE, SYNC):
            aux = self.rng.randrange(self.model.seq) if op == SYNC else 0
            self.record(Event(op, number, at, length, self.rng.randbytes(length), aux))
        elif op in (ZERO, TRIM, SYNC_ZERO):
            aux = self.rng.randrange(self.model.seq) if op == SYNC_ZERO else 0
            self.record(Event(op, number, at, length, aux=aux))
        else:
            self._about(op, number)

    def _about(self, op: int, number: int) -> None:
        name = self.names[number]
        if op == RESIZE:
            self.sizes[name] = BLOCK * self.rng.randrange(1, 6) + 512 * self.rng.randrange(2)
            self.record(Event(RESIZE, number, self.sizes[name]))
        elif op == DETACH and len(self.names) > 1:
            del self.names[number]
            self.record(Event(DETACH, body={"disk": number, "name": name}))
        elif op == DISK and len(self.names) < len(NAMES):
            new = next(n for n in NAMES if n not in self.names.values())
            free = max(self.names) + 1
            self.names[free] = new
            self.record(Event(DISK, body={"disk": free, "name": new, "size": self.sizes[new]}))
        elif op == BEGIN:
            self.begin()
            self.record(Event(END, body={"bytes": 0, "unreadable": []}))


def images(tape: Tape) -> dict[str, bytes]:
    return {name: tape.model.disks[name].image() for name in tape.names.values()}


def started(seed: int) -> Tape:
    rng = random.Random(seed)
    sizes = {name: BLOCK * rng.randrange(1, 6) for name in NAMES}
    tape = Tape(rng, Model(), {0: "root", 1: "data"}, sizes, 0, [], {})
    tape.model.start_generation(keep=False)
    tape.begin()
    tape.record(Event(END, body={"bytes": 0, "unreadable": []}))
    for _ in range(15):
        tape.step()
    return tape


def listed(tape: Tape) -> tuple[Known, dict[str, bytes]]:
    disks = [ListedDisk(n, name, tape.sizes[name], []) for n, name in sorted(tape.names.items())]
    tape.flush()
    return Known(Directory(disks), tape.name(), tape.model.seq), images(tape)


def wrong(known: Known, then: dict[str, bytes], tape: Tape) -> list[tuple[str, int]]:
    """Blocks that are believed to be as the list says, and are not."""
    now, found = images(tape), []
    for number, disk in known.current():
        assert tape.names[number] == disk.name
        before, after = then[disk.name], now[disk.name]
        count = -(-len(after) // BLOCK)
        for at in np.flatnonzero(~disk.unknown(0, count)).tolist():
            span = slice(at * BLOCK, (at + 1) * BLOCK)
            if before[span] != after[span]:
                found.append((disk.name, at))
    return found


def believed(known: Known) -> int:
    """How many blocks are known: the rule must not be that nothing is."""
    return sum(int((~disk.unknown(0, 8)).sum()) for _, disk in known.current())


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_believed_that_changed(seed: int) -> None:
    tape = started(seed)
    known, then = listed(tape)
    for turn in range(6):
        for _ in range(tape.rng.randrange(1, 5)):
            tape.step()
        if tape.rows:
            generation, records, bodies = tape.flush()
            known.apply(generation, records, bodies.__getitem__)
        if turn == 3 and seed % 2:
            tape.renew()
            generation, records, bodies = tape.flush()
            known.apply(generation, records, bodies.__getitem__)
        assert wrong(known, then, tape) == []


def test_what_was_not_looked_at_is_believed_wrongly() -> None:
    """The control: records after the list that nobody applies. And enough is known otherwise."""
    mistakes = total = 0
    for seed in range(10):
        tape = started(seed)
        known, then = listed(tape)
        total += believed(known)
        tape.record(Event(WRITE, next(iter(tape.names)), 0, 512, b"new!" * 128))
        mistakes += len(wrong(known, then, tape))
    assert mistakes == 10
    assert total > 20


def test_a_gap_or_another_history_is_refused() -> None:
    tape = started(1)
    known, _ = listed(tape)
    tape.step()
    tape.flush()
    tape.record(Event(WRITE, next(iter(tape.names)), 0, 512, bytes(512)))
    generation, records, bodies = tape.flush()
    with pytest.raises(WireError, match="does not follow"):
        known.apply(generation, records, bodies.__getitem__)
    other = started(2)
    known, _ = listed(other)
    other.renew(goes_on=False)
    generation, records, bodies = other.flush()
    with pytest.raises(NotComparable):
        known.apply(generation, records, bodies.__getitem__)
