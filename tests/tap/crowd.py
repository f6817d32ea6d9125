"""Several clients with overlapping requests in flight, and what must be true of what they saw.

Each write carries a number of its own in every sector, so that each version of a sector can be told
from each other. The ring's order must agree with time: what completed before something else was
submitted comes before it. A read must give, for each sector, a version that was current at some
moment between its submission and its completion.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from tests.model.model import TRIM, WRITE, ZERO
from tests.tap import nbd
from tests.tap.follow import Taken

SECTOR = 512
_CHANGES = {nbd.WRITE: WRITE, nbd.TRIM: TRIM, nbd.ZERO: ZERO}
_FOREVER = 1 << 62


def content(number: int, first_sector: int, count: int) -> bytes:
    """The data of write `number`: every sector says whose it is and where it belongs."""
    return b"".join(
        struct.pack("<QQ", number, first_sector + at) * (SECTOR // 16) for at in range(count)
    )


def author(sector: bytes, at: int) -> int:
    """Whose the sector is, 0 for zeroes; AssertionError if it is torn or lies elsewhere."""
    if not any(sector):
        return 0
    number, place = struct.unpack_from("<QQ", sector)
    assert place == at, f"sector {at} holds sector {place} of write {number}"
    assert sector == content(number, at, 1), f"sector {at} is torn"
    return int(number)


@dataclass
class Act:
    """A request and when it was in flight, in steps of the crowd."""

    number: int
    command: int
    offset: int
    length: int
    flags: int
    submitted: int
    completed: int = _FOREVER
    seen: bytes = b""

    def is_like(self, other: Act) -> bool:
        """Whether both ask for the same."""
        mine = (self.command, self.offset, self.length, self.flags)
        return mine == (other.command, other.offset, other.length, other.flags)


@dataclass
class Crowd:
    """`clients` of one disk, driven by one seed."""

    clients: list[nbd.Nbd]
    rng: random.Random
    size: int
    depth: int = 8
    largest: int = 16
    commands: tuple[int, ...] = (nbd.WRITE,) * 6 + (nbd.READ,) * 3 + (nbd.TRIM, nbd.ZERO, nbd.FLUSH)
    step: int = 0
    acts: list[Act] = field(default_factory=list)
    _flying: dict[tuple[int, int], Act] = field(default_factory=dict)

    def run(self, requests: int) -> None:
        """So many requests, then wait for all of them."""
        until = len(self.acts) + requests
        while len(self.acts) < until:
            who = self.rng.randrange(len(self.clients))
            flying = len(self.clients[who].pending)
            if flying < self.depth and self.rng.random() < 0.6:
                self._submit(who, self.rng.randint(1, self.depth - flying))
            elif flying:
                self._receive(who)
        self.drain()

    def drain(self) -> None:
        """Take every answer."""
        for who, client in enumerate(self.clients):
            while client.pending:
                self._receive(who)

    def _submit(self, who: int, count: int) -> None:
        out = b""
        for _ in range(count):
            act = self._draw()
            data = b""
            if act.command == nbd.WRITE:
                data = content(act.number, act.offset // SECTOR, act.length // SECTOR)
            cookie, packed = self.clients[who].prepare(
                act.command, act.offset, act.length, data, act.flags
            )
            out += packed
            self._flying[who, cookie] = act
            self.acts.append(act)
        self.step += 1
        self.clients[who].wire.send(out)

    def _draw(self) -> Act:
        """The next request. Two equal trims or zeroes in flight could not be told apart."""
        while True:
            act = self._guess()
            flying = self._flying.values()
            if act.command in (nbd.WRITE, nbd.FLUSH) or not any(map(act.is_like, flying)):
                return act

    def _guess(self) -> Act:
        number, command = len(self.acts) + 1, self.rng.choice(self.commands)
        if command == nbd.FLUSH:
            return Act(number, command, 0, 0, 0, self.step)
        sectors = self.rng.choice([1, 1, 2, 8, self.rng.randint(1, self.largest)])
        first = self.rng.randrange(self.size // SECTOR - sectors + 1)
        if self.rng.random() < 0.05:
            first = self.size // SECTOR - sectors
        may_fua = command in (nbd.WRITE, nbd.TRIM, nbd.ZERO) and self.rng.random() < 0.1
        return Act(
            number,
            command,
            first * SECTOR,
            sectors * SECTOR,
            nbd.FUA if may_fua else 0,
            self.step,
        )

    def _receive(self, who: int) -> None:
        reply = self.clients[who].receive()
        self.step += 1
        act = self._flying.pop((who, reply.cookie))
        assert reply.error == 0, (act, reply.error)
        act.completed = self.step
        act.seen = reply.data

    def check_records(self, taken: list[Taken]) -> None:
        """Each change is in the ring once, with its range, data and flags, in a possible order."""
        records = [one for one in taken if one.op in (WRITE, TRIM, ZERO)]
        placed = self._match(records)
        latest_submit = 0
        for _, act in sorted(placed.items()):
            # Nothing recorded after this may have completed before this was submitted.
            assert act.completed > latest_submit, f"{act} is recorded too late"
            latest_submit = max(latest_submit, act.submitted)
        flushes = sum(act.command == nbd.FLUSH for act in self.acts)
        assert sum(one.op == 4 for one in taken) == flushes

    def _match(self, records: list[Taken]) -> dict[int, Act]:
        """Sequence to act. Writes say who they are; trims and zeroes are told by their range."""
        placed: dict[int, Act] = {}
        waiting: dict[tuple[int, int, int, int], list[Act]] = {}
        for act in self.acts:
            if act.command in (nbd.TRIM, nbd.ZERO):
                key = (_CHANGES[act.command], act.offset, act.length, act.flags & nbd.FUA)
                waiting.setdefault(key, []).append(act)
        for one in records:
            event = one.event
            if event.op == WRITE:
                act = self.acts[author(event.data[:SECTOR], event.offset // SECTOR) - 1]
                expected = content(act.number, act.offset // SECTOR, act.length // SECTOR)
                assert (event.offset, event.data) == (act.offset, expected)
                assert event.flags == act.flags & nbd.FUA
            else:
                act = waiting[event.op, event.offset, event.length, event.flags].pop(0)
            placed[one.seq] = act
        changes = sum(act.command in _CHANGES for act in self.acts)
        assert len(placed) == changes == len({act.number for act in placed.values()})
        return placed

    def check_reads(self, taken: list[Taken]) -> int:
        """Every sector that a read saw was current in its time; how many were looked at."""
        history: dict[int, list[tuple[int, Act]]] = {}
        placed = self._match([one for one in taken if one.op in (WRITE, TRIM, ZERO)])
        for _, act in sorted(placed.items()):
            value = act.number if act.command == nbd.WRITE else 0
            for at in range(act.offset // SECTOR, (act.offset + act.length) // SECTOR):
                history.setdefault(at, []).append((value, act))
        looked = 0
        for read in (act for act in self.acts if act.command == nbd.READ):
            for at in range(read.length // SECTOR):
                sector = read.offset // SECTOR + at
                seen = author(read.seen[at * SECTOR : (at + 1) * SECTOR], sector)
                assert _was_current(history.get(sector, []), seen, read), (sector, seen, read)
                looked += 1
        return looked


def _was_current(versions: list[tuple[int, Act]], seen: int, read: Act) -> bool:
    """Whether some version with this value was submitted before the read's end and not yet replaced
    (by something complete) at its beginning."""
    candidates: list[tuple[int, Act | None]] = [(0, None), *versions]
    for place, (value, act) in enumerate(candidates):
        if value != seen or (act is not None and act.submitted >= read.completed):
            continue
        if not any(later.completed <= read.submitted for _, later in versions[place:]):
            return True
    return False
