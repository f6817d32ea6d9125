"""Defects to plant, each a context in which the product is wrong: the judge must see every one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from host_agent.stream import greeting
from host_agent.stream.connection import Connection
from host_agent.stream.ledger import Freed
from host_agent.stream.prepare import Prepared
from host_agent.stream.session import Resume, RingPosition, judge_welcome
from host_agent.wire.frame import FrameHeader
from host_agent.wire.message import Welcome
from host_agent.wire.names import chain_name
from host_agent.wire.record import State
from tests.sim.machine import SeededRandom
from tests.sim.store import Client
from tests.sim.tap import Tap
from workers.ingest import chain
from workers.ingest.chain import ChainWriter
from workers.ingest.commit import Committer
from workers.ingest.gate import FrameGate, Verdict
from workers.ingest.rpo import Moment, RpoTracker
from workers.storage.errors import OutcomeUnknown
from workers.storage.port import Created


@contextmanager
def acknowledge_before_put() -> Iterator[None]:
    """Ingest says *stored* when it begins to store."""
    honest = Committer._commit

    async def commit(self: Committer) -> None:
        header = self._open.frames[-1].header
        claimed: Any = SimpleNamespace(
            epoch=self._stream.chain.epoch,
            generation=header.generation,
            last_seq=header.last_seq,
            record_hash=header.record_hash,
            place=1,
        )
        self._on_stored(claimed)
        await honest(self)

    with patch.object(Committer, "_commit", commit):
        yield


@contextmanager
def free_what_was_sent() -> Iterator[None]:
    """The agent gives ring space back when a frame has left."""
    honest = Connection._account

    def early(self: Connection, frame: Prepared) -> None:
        honest(self, frame)
        self._to_free = Freed(frame.last_seq, frame.anchor, frame.anchor_hash)
        self._freeing.notify()

    with patch.object(Connection, "_account", early):
        yield


@contextmanager
def accept_gaps() -> Iterator[None]:
    """The agent resumes one record late, and ingest takes it."""
    honest = FrameGate.judge

    def late(welcome: Welcome, ring: RingPosition) -> Resume:
        resume = judge_welcome(welcome, ring)
        return replace(resume, first=resume.first + 1, verify=None) if ring.head else resume

    def judge(self: FrameGate, header: FrameHeader, length: int) -> Verdict:
        self._next_seq = max(self._next_seq, header.first_seq)
        return honest(self, header, length)

    with (
        patch.object(greeting, "judge_welcome", late),
        patch.object(FrameGate, "judge", judge),
        patch.object(chain, "check_follows", lambda *_: None),
    ):
        yield


@contextmanager
def skip_the_epoch_check() -> Iterator[None]:
    """A writer that finds its place taken by a newer epoch goes on behind it."""
    honest = ChainWriter.append

    def append(self: ChainWriter, batch: Any) -> Any:
        for _ in range(50):
            try:
                return honest(self, batch)
            except chain.Fenced:
                self._fenced = None
                end = self.find_end(self._end.place if self._end else 0)
                assert end is not None
                self._epoch, self._writer = end.epoch, end.writer
        raise AssertionError

    with (
        patch.object(ChainWriter, "append", append),
        patch.object(chain, "check_follows", lambda *_: None),
    ):
        yield


@contextmanager
def take_exists_for_success() -> Iterator[None]:
    """412 is as good as 200."""

    def create(self: ChainWriter, place: int, data: bytes) -> bool:
        self._store.put_if_absent(chain_name(self._identity, place), data)
        return True

    with patch.object(ChainWriter, "_create", create):
        yield


@contextmanager
def take_timeouts_for_success() -> Iterator[None]:
    """A create that nobody answered is as good as done."""
    honest = Client.put_if_absent

    def put(self: Client, name: str, data: bytes) -> Created:
        try:
            return honest(self, name, data)
        except OutcomeUnknown:
            return Created.CREATED

    with patch.object(Client, "put_if_absent", put):
        yield


@contextmanager
def forget_what_is_dirty() -> Iterator[None]:
    """The tap becomes dirty, and does not mark what was not recorded."""
    with patch.object(Tap, "_mark", lambda *_: None):
        yield


@contextmanager
def let_syncs_win() -> Iterator[None]:
    """A sync's block carries the position after its read."""
    honest = Tap.take_block

    def take(self: Tap, at: tuple[int, int, int], data: bytes, _before: int) -> None:
        honest(self, at, data, self.ring.head)

    with patch.object(Tap, "take_block", take):
        yield


@contextmanager
def resume_unseen() -> Iterator[None]:
    """The agent does not compare the journal's hash with its own."""

    def judge(welcome: Welcome, ring: RingPosition) -> Resume:
        return replace(judge_welcome(welcome, ring), verify=None)

    with patch.object(greeting, "judge_welcome", judge):
        yield


@contextmanager
def repeat_salts() -> Iterator[None]:
    """Each connection has the same salt."""
    with patch.object(SeededRandom, "bytes", lambda _self, count: b"s" * count):
        yield


@contextmanager
def state_what_was_sent() -> Iterator[None]:
    """The recovery point is the head, stored or not."""
    honest = RpoTracker.stated

    def stated(self: RpoTracker, probe: int, head: int, state: State, now: Moment) -> None:
        honest(self, probe, head, state, now)
        self.stored(head)

    with patch.object(RpoTracker, "stated", stated):
        yield


@contextmanager
def take_dirty_for_idle() -> Iterator[None]:
    """A stream that lost track counts as one that writes nothing."""
    honest = RpoTracker.stated

    def stated(self: RpoTracker, probe: int, head: int, _state: State, now: Moment) -> None:
        honest(self, probe, head, State.RECORDING, now)

    with patch.object(RpoTracker, "stated", stated):
        yield


DEFECTS = (
    acknowledge_before_put,
    free_what_was_sent,
    accept_gaps,
    skip_the_epoch_check,
    take_exists_for_success,
    take_timeouts_for_success,
    forget_what_is_dirty,
    let_syncs_win,
    resume_unseen,
    repeat_salts,
    state_what_was_sent,
    take_dirty_for_idle,
)
