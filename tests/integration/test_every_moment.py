"""Any sequence of a random workload comes back as an independent model says, the source deleted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from infra.demo.report import DemoFailed
from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place
from tests.model.model import BEGIN, FLUSH, MORE, SECTOR, TRIM, WRITE, ZERO, Event, replay
from tests.model.sectors import SectorWriter, faults

_PIECE = MIB  # a larger request is recorded in pieces of this size
_MOMENTS = 8


@dataclass
class Load:
    """Random requests, one at a time, and the records that they must have become."""

    client: NbdClient
    rng: random.Random
    base: int
    events: list[Event] = field(default_factory=list)
    unchoosable: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.writer = SectorWriter(0)
        self.sectors = self.client.size // SECTOR

    @property
    def head(self) -> int:
        """The sequence of the newest record."""
        return self.base + len(self.events)

    def run(self, count: int) -> None:
        """`count` requests: overlaps, partial blocks, zeroes, trims, FUA, the last sector."""
        for number in range(count):
            kind = self.rng.choices([WRITE, ZERO, TRIM, FLUSH], [70, 10, 10, 10])[0]
            if kind == FLUSH:
                self.client.flush()
                self.events.append(Event(FLUSH))
                continue
            at, length = self._range()
            if number == count // 2:
                at, length = 64, 5 * _PIECE // 2 // SECTOR
            if kind == WRITE:
                self._write(at, length)
            else:
                ask = self.client.zero if kind == ZERO else self.client.trim
                ask(at * SECTOR, length * SECTOR)
                self.events.append(Event(kind, 0, at * SECTOR, length * SECTOR))
        self._write(64, 5 * _PIECE // 2 // SECTOR)

    def _range(self) -> tuple[int, int]:
        if self.rng.random() < 0.1:
            return self.sectors - 1, 1
        length = self.rng.choice([1, 1, 2, 3, 7, 8, 8, 9, 16, 33, 128])
        span = 400 if self.rng.random() < 0.6 else self.sectors
        return self.rng.randrange(span - length + 1), length

    def _write(self, at: int, length: int) -> None:
        data = self.writer.write(at, length)
        self.client.write(at * SECTOR, data, fua=self.rng.random() < 0.2)
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            more = MORE if start + _PIECE < len(data) else 0
            self.events.append(Event(WRITE, 0, at * SECTOR + start, len(piece), piece, flags=more))
            if more:
                self.unchoosable.add(self.head)

    def image(self, seq: int, without: int | None = None) -> bytes:
        """What the disk must hold at `seq`; `without` leaves out one event, as a fault would."""
        kept = [one for n, one in enumerate(self.events[: seq - self.base]) if n != without]
        opening = {"disks": [{"disk": 0, "name": "disk", "size": self.client.size}]}
        return replay([Event(BEGIN, body=opening), *kept]).images()["disk"]


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.invariant("I1", "I3", "I4")
def test_a3_restore_to_random_sequences_equals_the_model(place: Place) -> None:
    rng = random.Random(20_260_131)
    uri = place.protect()
    with NbdClient(uri) as client:
        load = Load(client, rng, place.head())
        load.run(300)
        assert difference(client.read_all(), load.image(load.head)) == ""
    assert place.drain()["head"] == load.head
    source = place.lose()
    assert difference(source, load.image(load.head)) == ""

    choosable = [s for s in range(load.base + 1, load.head + 1) if s not in load.unchoosable]
    for seq in [*sorted(rng.sample(choosable, _MOMENTS)), choosable[-1]]:
        restored = place.export(f"seq:{seq}")
        assert difference(restored, load.image(seq)) == "", f"sequence {seq}"
        assert not list(faults(restored, 0, load.writer.counter))
    assert difference(place.export("latest-write"), source) == ""
    for seq in load.unchoosable:
        with pytest.raises(DemoFailed, match=str(seq)):
            place.export(f"seq:{seq}")
    _served_equals(place, load, choosable[len(choosable) // 2])
    _model_is_not_blind(load)


def _served_equals(place: Place, load: Load, seq: int) -> None:
    served = place.safe.serve(f"seq:{seq}", place.folder / "served")
    with NbdClient(served.uri) as client:
        assert difference(client.read_all(), load.image(seq)) == ""
    served.process.stop()


def _model_is_not_blind(load: Load) -> None:
    """The control: a history with a hole in it gives another image."""
    visible = next(
        n
        for n in range(len(load.events) - 1, -1, -1)
        if load.events[n].op == WRITE and load.events[n].length < _PIECE
    )
    assert load.image(load.head, without=visible) != load.image(load.head)
