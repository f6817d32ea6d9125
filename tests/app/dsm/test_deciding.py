"""What managers decide, without a database and without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from app.dsm.assignments import NO_SITE, Place, Route
from app.dsm.door import Peer
from app.dsm.engine import Agenda
from app.dsm.health import (
    CapacityClass,
    Health,
    HealthRecord,
    capacity_class,
    decode_record,
    encode_record,
    judge,
)
from app.dsm.known import ROW_SECONDS, HostState, KnownHost, Marked
from app.dsm.manager import DueKey, Manager, Means
from app.dsm.metrics import Metrics
from app.dsm.outbox import Outbox
from app.dsm.watchdog import watched_loop
from app.kit.ids import Kind, show
from app.kit.pace import Pace
from host_agent.wire import control
from host_agent.wire.control import (
    Answer,
    Command,
    Failure,
    GroupFacts,
    Heartbeat,
    Hello,
    Taken,
    Welcome,
)
from host_agent.wire.errors import WireError
from tests.servers.dsm_host import GENERATION, Keeping

NOW = datetime(2026, 11, 22, tzinfo=UTC)
VPG = show(Kind.VPG, UUID(int=7 << 76 | 2 << 62))
RECORD = HealthRecord("host_a", Health.UP, CapacityClass.SMALL, 3, NOW)


def facts(**changes: Any) -> GroupFacts:
    """Of a group that is in sync."""
    plain = GroupFacts(VPG, "streaming", "in_sync", GENERATION, 5, 5, 1, 0, 0)
    return msgspec.structs.replace(plain, **changes)


# ------------------------------------------------------------------ when


def test_what_is_due_comes_at_its_interval_and_what_was_missed_is_not_caught_up_with() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", 5.0, now=100.0)
    assert agenda.due(100.0, 10) == ["a"]
    assert agenda.due(104.9, 10) == []
    assert agenda.due(105.0, 10) == ["a"]
    assert agenda.due(143.0, 10) == ["a"]
    assert agenda.due(144.9, 10) == []
    assert agenda.due(145.0, 10) == ["a"]


def test_an_agenda_follows_changes_and_forgets() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", 5.0, now=0.0)
    agenda.put("b", 5.0, now=0.0, salt=500)
    assert agenda.due(0.0, 10) == ["a"]
    assert agenda.due(2.5, 10) == ["b"], "spread over the interval"
    agenda.put("a", 1.0, now=3.0)
    assert agenda.due(3.0, 10) == ["a"]
    assert agenda.due(4.0, 10) == ["a"]
    agenda.remove("a")
    assert agenda.due(5.0, 10) == []
    assert len(agenda) == 1
    for number in range(50):
        agenda.put(str(number), 10.0, now=20.0)
    assert len(agenda.due(20.0, 20)) == 20


# ------------------------------------------------------------------ how a host is


@pytest.mark.parametrize(
    ("silent", "tap", "groups", "expected"),
    [
        (0.0, "up", [], (Health.UP, None)),
        (29.0, "up", [facts()], (Health.UP, None)),
        (31.0, "up", [facts()], (Health.DOWN, "silent")),
        (None, "up", [], (Health.DOWN, "silent")),
        (1.0, "down", [facts()], (Health.DEGRADED, "tap_down")),
        (1.0, "up", [facts(gap_reason="network")], (Health.DEGRADED, "network")),
        (31.0, "down", [facts(gap_reason="network")], (Health.DOWN, "silent")),
    ],
)
def test_health_follows_from_what_is_heard(
    silent: float | None, tap: str, groups: list[GroupFacts], expected: object
) -> None:
    assert judge(silent, 10.0, tap, groups) == expected


def test_a_row_is_written_at_a_change_and_else_once_a_minute() -> None:
    state = HostState(uuid4(), seen_at=0.0, intervals={VPG: 5.0})
    written = []
    for second in range(0, 600, 10):
        state.heard(Heartbeat(1, "up", [facts(stored_seq=second)]), float(second))
        status = state.status(float(second), 10.0)
        if state.is_row_due(status, float(second)):
            state.written, state.written_at = status, float(second)
            written.append(second)
    assert written == list(range(0, 600, int(ROW_SECONDS)))
    state.heard(Heartbeat(1, "up", [facts(gap_reason="network")]), 601.0)
    assert state.is_row_due(state.status(601.0, 10.0), 601.0)


def test_facts_of_groups_that_are_not_on_the_host_count_for_nothing() -> None:
    state = HostState(uuid4(), seen_at=0.0, intervals={VPG: 5.0})
    state.heard(Heartbeat(1, "up", [facts(), facts(vpg="vpg_of_somebody_else")]), 1.0)
    assert [one.vpg for one in state.groups] == [VPG]


def test_a_checkpoint_is_complete_when_the_journal_holds_its_position() -> None:
    state = HostState(uuid4(), seen_at=0.0, intervals={VPG: 5.0})
    marked = Marked(VPG, "ab", NOW, 1, GENERATION, 7, 100)
    assert state.mark(marked) == []
    assert state.heard(Heartbeat(1, "up", [facts(stored_seq=6)]), 1.0) == []
    (done,) = state.heard(Heartbeat(1, "up", [facts(stored_seq=7)]), 2.0)
    assert done == replace(marked, is_complete=True)
    state.mark(marked)
    (done,) = state.heard(Heartbeat(1, "up", [facts(generation="ff" * 16, stored_seq=9)]), 3.0)
    assert not done.is_complete, "of a generation that ended"


def test_the_health_record_has_five_fields_and_no_sixth() -> None:
    assert HealthRecord.__struct_fields__ == (
        "appliance", "health", "capacity_class", "epoch", "time",
    )  # fmt: skip
    assert decode_record(encode_record(RECORD)) == RECORD
    with pytest.raises(AttributeError):
        RECORD.health = Health.DOWN  # type: ignore[misc]
    plain = msgspec.json.decode(encode_record(RECORD))
    for bad in (
        {**plain, "tenant": "ten_a"},
        {name: value for name, value in plain.items() if name != "epoch"},
        {**plain, "health": "well"},
        {**plain, "epoch": -1},
        {**plain, "time": "2026-11-22T00:00:00"},
        {**plain, "appliance": "x" * 600},
    ):
        with pytest.raises(WireError):
            decode_record(msgspec.json.encode(bad))


def test_capacity_tells_a_class_and_no_size() -> None:
    classes = [capacity_class(groups) for groups in (0, 1, 31, 32, 500)]
    assert [one.value for one in classes] == ["idle", "small", "small", "large", "large"]


# ------------------------------------------------------------------ who may command


@dataclass(eq=False)
class Wire:
    """A host's connection: it keeps the contract, its answers go where they are asked for."""

    peer: Peer
    hello: Hello
    keeping: Keeping
    checks: bool = True
    obeyed: list[tuple[int, int]] = field(default_factory=list)
    refused: list[tuple[int, int]] = field(default_factory=list)
    welcomes: list[Welcome] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    dropped: str = ""
    manager: Manager | None = None

    def send(self, text: str) -> None:
        message = control.decode_from_manager(text)
        if isinstance(message, Welcome):
            self.welcomes.append(message)
        elif isinstance(message, Taken):
            self.taken.append(message)
        elif isinstance(message, Command):
            self._obey(message)

    def _obey(self, message: Command) -> None:
        assert self.manager is not None
        place = (message.epoch, message.number)
        if self.keeping.takes(*place) or not self.checks:
            self.obeyed.append(place)
            result: control.Details = {"generation": GENERATION, "seq": 9, "source_time_ns": 1}
            self.manager.said(self, Answer(*place, "done", result))
        else:
            self.refused.append(place)
            stale = Failure("epoch_stale", "Another manager commands.")
            self.manager.said(self, Answer(*place, "failed", error=stale))

    def drop(self, reason: str) -> None:
        self.dropped = reason


class Quiet:
    """A desk that remembers what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.calls.append((name, *given))


class Managing:
    """A manager of one host's place, with a clock of its own."""

    def __init__(self, epoch: int, wire: Wire) -> None:
        self.now, self.may_act, self.metrics = 1_000.0, True, Metrics()
        self.agenda: Agenda[DueKey] = Agenda()
        means = Means(
            now=lambda: self.now,
            wall=lambda: NOW + timedelta(seconds=self.now),
            may_act=lambda: self.may_act,
            heartbeat_seconds=10.0,
            metrics=self.metrics,
            agenda=self.agenda,
        )
        self.desk = Quiet()
        self.wire = wire
        route = Route(wire.peer.place, uuid4(), epoch, "")
        self.manager = Manager(route, means, self.desk)

    def connect(self) -> None:
        """The host is there, and the database knows it with its group."""
        host_id = self.wire.peer.host_id
        self.wire.manager = self.manager
        self.manager.joined(self.wire)
        known = KnownHost(host_id, "up", None, "up", 1, {}, None, 1, {VPG: 5.0})
        self.manager.learn([known])
        self.manager.said(self.wire, Heartbeat(1, "up", [facts()]))

    def checkpoint(self) -> None:
        """The group's next."""
        self.wire.manager = self.manager
        self.now += 5
        self.manager.checkpoint(self.wire.peer.host_id, VPG)


def make_wire(keeping: Keeping, *, checks: bool = True) -> Wire:
    """A connection of a host that has this on its disk."""
    place = Place(UUID(int=1), NO_SITE)
    peer = Peer(place, UUID(int=2), "ten_a", "host_a", NOW + timedelta(days=1))
    return Wire(peer, Hello("1.0", keeping.epoch, keeping.number, 1, 1), keeping, checks)


@pytest.mark.parametrize("checks", [True, False], ids=["kept", "broken"])
def test_of_two_that_think_they_own_a_host_the_older_is_refused(checks: bool) -> None:
    keeping = Keeping()
    old, new = (Managing(epoch, make_wire(keeping, checks=checks)) for epoch in (1, 2))
    old.connect()
    new.connect()
    old.checkpoint()
    assert old.wire.obeyed == [(1, 1)]
    for _ in range(3):
        new.checkpoint()
        old.checkpoint()
    assert new.wire.obeyed == [(2, 1), (2, 2), (2, 3)]
    if checks:
        assert old.wire.obeyed == [(1, 1)]
        assert old.wire.refused == [(1, 2), (1, 3), (1, 4)]
        failed = [call for call in old.desk.calls if call[0] == "mark_failed"]
        assert {call[4].error.code for call in failed} == {"epoch_stale"}
    else:
        assert len(old.wire.obeyed) == 4, "without its own check the host would obey both"


def test_without_the_permission_to_act_nothing_is_sent() -> None:
    managing = Managing(1, make_wire(Keeping()))
    managing.connect()
    managing.checkpoint()
    managing.may_act = False
    for _ in range(3):
        managing.checkpoint()
    assert managing.wire.obeyed == [(1, 1)]
    assert managing.metrics.withheld._value.get() == 3
    managing.may_act = True
    managing.checkpoint()
    assert len(managing.wire.obeyed) == 2


def test_a_host_that_has_seen_more_is_not_commanded_until_the_epoch_is_higher() -> None:
    managing = Managing(1, make_wire(Keeping(epoch=37, number=4)))
    managing.connect()
    assert ("epoch_seen", managing.manager.route, 37) in managing.desk.calls
    managing.manager.raised(38)
    managing.checkpoint()
    assert [welcome.epoch for welcome in managing.wire.welcomes] == [38]
    assert managing.wire.obeyed == [(38, 1)]
    liar = Managing(1, make_wire(Keeping(epoch=1 << 62)))
    liar.manager.joined(liar.wire)
    assert liar.wire.dropped


def test_a_host_whose_row_comes_after_the_epoch_was_raised_is_asked_for() -> None:
    managing = Managing(1, make_wire(Keeping(epoch=37)))
    managing.manager.joined(managing.wire)
    managing.desk.calls.clear()
    managing.manager.raised(38)
    wanted = ("hosts_wanted", managing.manager.place, {managing.wire.peer.host_id})
    assert wanted in managing.desk.calls


def test_a_host_that_returns_to_the_same_manager_goes_on_with_higher_numbers() -> None:
    keeping = Keeping()
    managing = Managing(1, make_wire(keeping))
    managing.connect()
    managing.checkpoint()
    again = make_wire(keeping)
    managing.manager.left(managing.wire)
    managing.wire = again
    managing.connect()
    managing.checkpoint()
    assert again.obeyed == [(1, 2)]
    assert again.refused == []


def test_whoever_left_answers_what_was_asked_of_it_with_nothing() -> None:
    managing = Managing(1, make_wire(Keeping()))
    managing.connect()
    answers: list[Answer | None] = []
    managing.wire.send = lambda text: None  # type: ignore[method-assign]
    host_id = managing.wire.peer.host_id
    assert managing.manager.command(host_id, control.Discover(), answers.append) == 1
    managing.manager.left(managing.wire)
    assert answers == [None]
    assert managing.manager.command(host_id, control.Discover(), answers.append) is None


# ------------------------------------------------------------------ limits


def test_a_pace_lets_a_burst_through_and_then_its_rate() -> None:
    pace = Pace(per_second=10, burst=5)
    assert [pace.takes(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert pace.takes(100.15)
    assert not pace.takes(100.15)


@pytest.mark.anyio
async def test_an_outbox_that_was_full_ends() -> None:
    outbox: Outbox[int] = Outbox(3)
    sent: list[int] = []

    async def send(number: int) -> None:
        sent.append(number)

    running = asyncio.create_task(outbox.run(send))
    assert outbox.put(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sent == [1]
    assert [outbox.put(number) for number in range(5)] == [True, True, True, False, False]
    await asyncio.wait_for(running, 30)
    assert not outbox.put(9)


def test_the_watchdog_counts_what_holds_the_loop_up_and_nothing_else() -> None:
    stalls: list[float] = []

    async def work() -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)
        quiet = len(stalls)
        time.sleep(0.05)  # blocks
        await asyncio.sleep(0)
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(stalls) == quiet + 2

    with asyncio.Runner(loop_factory=lambda: watched_loop(stalls.append)) as runner:
        runner.run(work())
    assert len([one for one in stalls if one > 0.04]) >= 2
