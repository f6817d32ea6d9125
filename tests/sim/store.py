"""A simulated object store: the service that holds objects, and the client of one process.

A request travels, is carried out at one instant, and its answer travels back. Each of the three may
fail apart from the others: what a client was not told may have happened, or may happen later.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from host_agent.wire.pieces import Content
from tests.sim.loop import SimLoop, block
from workers.storage.errors import (
    ObjectMissing,
    ObjectTooShort,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from workers.storage.port import Created, Listed

#: What the S3 client waits for an answer.
_ANSWER_SECONDS = 8.0
#: 2026, the service's clock when the simulation begins.
_START = 1_767_225_600


@dataclass
class Moods:
    """How the store behaves now. Chances from 0 to 1, seconds."""

    latency: float = 0.015
    away: bool = False
    full: bool = False
    busy: float = 0.0
    slow: float = 0.0
    lost_answer: float = 0.0
    late: float = 0.0
    corrupt: float = 0.0
    exists_storm: float = 0.0
    stale_seconds: float = 0.0


class Service:
    """The objects, and what happened to them."""

    def __init__(self, loop: SimLoop, rng: random.Random, count: Callable[[str], None]) -> None:
        self._loop, self.rng, self.count = loop, rng, count
        self.moods = Moods()
        self.objects: dict[str, bytes] = {}
        self.made_at: dict[str, float] = {}
        self.removed_at: dict[str, float] = {}
        self.on_create: Callable[[str, bytes], None] = lambda _name, _data: None
        self.on_delete: Callable[[str], None] = lambda _name: None
        self.requests = 0

    # --- carried out at one instant

    def put_if_absent(self, name: str, data: bytes) -> Created:
        if self.rng.random() < self.moods.exists_storm and name not in self.objects:
            self.count("exists_storm")
            return Created.EXISTS
        if name in self.objects:
            self.count("create_exists")
            return Created.EXISTS
        if self.moods.full:
            raise StoreFull("sim:// is full.")
        self.objects[name] = data
        self.made_at[name] = self._loop.time()
        self.on_create(name, data)
        return Created.CREATED

    def get(self, name: str, cut: Callable[[bytes], bytes]) -> bytes:
        try:
            data = cut(self.objects[name])
        except KeyError:
            raise ObjectMissing("sim://", name) from None
        if data and self.rng.random() < self.moods.corrupt:
            self.count("corrupt_get")
            at = self.rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << self.rng.randrange(8)]) + data[at + 1 :]
        return data

    def size(self, name: str) -> int:
        try:
            return len(self.objects[name])
        except KeyError:
            raise ObjectMissing("sim://", name) from None

    def listed(self, folder: str, start_after: str, limit: int | None) -> tuple[Listed, ...]:
        names = self._names()
        first = bisect_right(names, max(start_after, folder))
        found: list[Listed] = []
        for name in names[first:]:
            if not name.startswith(folder) or (limit is not None and len(found) >= limit):
                break
            if "/" not in name[len(folder) :] and name in self.objects:
                found.append(Listed(name, len(self.objects[name])))
        return tuple(found)

    def folders(self, folder: str) -> tuple[str, ...]:
        below = [n[len(folder) :] for n in self._names() if n.startswith(folder)]
        return tuple(sorted({f"{folder}{n.split('/')[0]}/" for n in below if "/" in n}))

    def _names(self) -> list[str]:
        before = self._loop.time() - self.moods.stale_seconds
        if not self.moods.stale_seconds:
            return sorted(self.objects)
        self.count("stale_list")
        return sorted(n for n in self.objects if self.made_at[n] <= before)

    def delete(self, name: str) -> None:
        if name in self.objects:
            self.on_delete(name)
            del self.objects[name]

    # --- on its way

    def request(self, do: Callable[[], Any], answer: Callable[[Any], None], creates: bool) -> None:
        """Carry out `do` after a while, and answer with its result or error, or never."""
        self.requests += 1
        rng, moods, loop = self.rng, self.moods, self._loop
        delay = moods.latency * rng.uniform(0.5, 1.5)
        if rng.random() < moods.slow:
            self.count("slow_request")
            delay += rng.uniform(0.2, 10.0)
        if creates and rng.random() < moods.late:
            self.count("late_create")
            loop.call_later(rng.uniform(0.5, 20.0), lambda: _outcome(do))
            return
        loop.call_later(delay / 2, self._carry_out, do, answer, delay / 2)

    def _carry_out(self, do: Callable[[], Any], answer: Callable[[Any], None], back: float) -> None:
        if self.moods.away:
            self.count("away")
            return
        if self.rng.random() < self.moods.busy:
            self.count("busy")
            self._loop.call_later(back, answer, StoreUnavailable("sim:// says 503."))
            return
        outcome = _outcome(do)
        if self.rng.random() < self.moods.lost_answer:
            self.count("lost_answer")
            return
        self._loop.call_later(back, answer, outcome)


def _outcome(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except StoreError as error:
        return error


class Client:
    """One process's way to the store; blocks. `reaches` says whether the network lets it."""

    label = "sim://bucket"

    def __init__(self, service: Service, loop: SimLoop, reaches: Callable[[], bool]) -> None:
        self._service, self._loop, self._reaches = service, loop, reaches
        self._answered: int | None = None

    def _ask(self, do: Callable[[], Any], creates: bool = False) -> Any:
        def register(answer: Callable[[Any], None]) -> None:
            self._loop.call_later(_ANSWER_SECONDS, answer, TimeoutError())
            if self._reaches():
                self._service.request(do, answer, creates)

        outcome = block(register)
        if not isinstance(outcome, TimeoutError):
            self._answered = int(self._loop.time())
        if isinstance(outcome, TimeoutError):
            if creates:
                raise OutcomeUnknown("sim:// did not answer.")
            raise StoreUnavailable("sim:// did not answer.")
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    def put_if_absent(self, name: str, data: Content) -> Created:
        whole = bytes(data)
        made: Created = self._ask(lambda: self._service.put_if_absent(name, whole), creates=True)
        return made

    def get(self, name: str) -> bytes:
        data: bytes = self._ask(lambda: self._service.get(name, lambda data: data))
        return data

    def get_range(self, name: str, start: int, length: int) -> bytes:
        data: bytes = self._ask(
            lambda: self._service.get(name, lambda data: data[start : start + length])
        )
        if len(data) != length:
            raise ObjectTooShort(f"{name} is shorter than asked for.")
        return data

    def get_tail(self, name: str, length: int) -> bytes:
        data: bytes = self._ask(
            lambda: self._service.get(name, lambda data: data[-length:] if length else b"")
        )
        return data

    def size(self, name: str) -> int:
        size: int = self._ask(lambda: self._service.size(name))
        return size

    def list(
        self, folder: str, start_after: str = "", limit: int | None = None
    ) -> Iterator[Listed]:
        found: tuple[Listed, ...] = self._ask(
            lambda: self._service.listed(folder, start_after, limit)
        )
        return iter(found)

    def folders(self, folder: str) -> Iterator[str]:
        found: tuple[str, ...] = self._ask(lambda: self._service.folders(folder))
        return iter(found)

    def delete(self, name: str) -> None:
        self._ask(lambda: self._service.delete(name))

    def answered_at(self) -> int | None:
        """The service's clock, in whole seconds as S3 shows it."""
        return None if self._answered is None else (_START + self._answered) * 1_000_000_000


def sleep(loop: SimLoop, seconds: float) -> None:
    """Block the calling work so long."""
    block(lambda answer: _wake(loop, seconds, answer))


def _wake(loop: SimLoop, seconds: float, answer: Callable[[Any], None]) -> None:
    loop.call_later(seconds, answer, None)
