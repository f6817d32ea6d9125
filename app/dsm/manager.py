"""The manager of one place: what it sends to its hosts, and what it makes of what they say.

Everything here happens on the loop at once; what needs the database goes through `Desk`. Nothing is
sent without the permission to act, so a process that lost its lease is silent whatever it believes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol
from uuid import UUID
from zlib import crc32

from app.checkpoints.identity import checkpoint_id, milliseconds
from app.dsm.assignments import EPOCH_MAX, Place, Route
from app.dsm.engine import Agenda
from app.dsm.known import HostState, KnownHost, Marked, StatusKey, written_key
from app.dsm.links import Link
from app.dsm.metrics import Metrics
from app.kit.ids import Kind, parse
from host_agent.wire import control
from host_agent.wire.control import (
    Answer,
    Assignment,
    AssignmentPush,
    Body,
    DataKeyRequest,
    Event,
    FromHost,
    FromManager,
    Heartbeat,
    Inventory,
    Progress,
    Taken,
    Welcome,
)

DueKey = tuple[Place, UUID, str]
#: What a command's answer, or None for a host that is gone, is given to.
OnAnswer = Callable[[Answer | None], None]
_MICROSECONDS = 1_000_000
#: A group's next checkpoint is asked for although the host did not answer the one before.
_ANSWER_SECONDS_MAX = 30.0


class Desk(Protocol):
    """What a manager asks for that takes time. Each call returns at once."""

    def hosts_wanted(self, place: Place, hosts: set[UUID] | None) -> None:
        """Read these hosts of the place, or all; `learn` is called with what is found."""
        ...

    def assignment_wanted(self, place: Place, host_id: UUID) -> None:
        """Read the host's assignment; `push` is called with it."""
        ...

    def epoch_seen(self, route: Route, epoch: int) -> None:
        """A host has seen a higher epoch than ours."""
        ...

    def inventory_came(self, place: Place, host_id: UUID, inventory: Inventory) -> None:
        """Enter it; `inventory_kept` is called."""
        ...

    def key_asked(self, place: Place, host_id: UUID, request: DataKeyRequest) -> None:
        """Ask the key service; `reply` is called."""
        ...

    def status_changed(self, route: Route, state: HostState, status: StatusKey) -> None:
        """A row is to be written."""
        ...

    def marked(self, place: Place, host_id: UUID, marked: Iterable[Marked]) -> None:
        """Checkpoints at their end."""
        ...

    def mark_failed(self, place: Place, vpg: str, expected_at: datetime, answer: Answer) -> None:
        """A checkpoint that a host could not take."""
        ...

    def held(self, place: Place, host_id: UUID, version: int) -> None:
        """A host has this version of its assignment."""
        ...

    def happened(self, place: Place, host_id: UUID, event: Event) -> None:
        """A host tells of an event."""
        ...

    def progressed(self, place: Place, host_id: UUID, progress: Progress) -> None:
        """How far a long command is."""
        ...


@dataclass(frozen=True)
class Means:
    """What all managers of a process share. `now` is monotonic seconds, `wall` this instant."""

    now: Callable[[], float]
    wall: Callable[[], datetime]
    may_act: Callable[[], bool]
    heartbeat_seconds: float
    metrics: Metrics
    agenda: Agenda[DueKey]


class Manager:
    """Commands the hosts of a place as long as this process is its owner."""

    def __init__(self, route: Route, means: Means, desk: Desk) -> None:
        self.route = route
        self.hosts: dict[UUID, HostState] = {}
        self.links: dict[UUID, Link] = {}
        self._means, self._desk = means, desk
        self._numbers: dict[UUID, int] = {}
        self._pending: dict[tuple[UUID, int], OnAnswer] = {}
        self._checkpointing: dict[tuple[UUID, str], float] = {}
        desk.hosts_wanted(route.place, None)

    @property
    def place(self) -> Place:
        """Whose hosts at which site."""
        return self.route.place

    # ------------------------------------------------------------------ who is there

    def joined(self, link: Link) -> None:
        """A host is connected."""
        host_id = link.peer.host_id
        self.links[host_id] = link
        if link.hello.epoch > self.route.epoch:
            if link.hello.epoch < EPOCH_MAX:
                self._desk.epoch_seen(self.route, link.hello.epoch)
                return  # `raised` goes on
            link.drop("its epoch is not believed")
            return
        known = self._numbers.get(host_id, 0)
        seen = link.hello.number if link.hello.epoch == self.route.epoch else 0
        self._numbers[host_id] = max(known, seen)
        state = self.hosts.get(host_id)
        if state is None:
            self._desk.hosts_wanted(self.place, {host_id})
        else:
            self._greet(link, state)

    def left(self, link: Link) -> None:
        """It is gone. What it was to answer is at its end."""
        host_id = link.peer.host_id
        if self.links.get(host_id) is not link:
            return
        del self.links[host_id]
        for key in [key for key in self._pending if key[0] == host_id]:
            self._pending.pop(key)(None)

    def learn(self, found: Iterable[KnownHost]) -> None:
        """What the database has of hosts; whoever is there is greeted."""
        now = self._means.now()
        for known in found:
            state = self.hosts.get(known.host_id)
            is_new = state is None
            if state is None:
                # Not heard of yet by us: it has as long as anybody to say something.
                state = HostState(known.host_id, seen_at=now, tap=known.tap)
                state.written, state.written_at = written_key(known), now
                state.held_version = known.held_version
                self.hosts[known.host_id] = state
            for vpg in set(state.intervals) - set(known.groups):
                self._means.agenda.remove((self.place, known.host_id, vpg))
            state.learn(known)
            self._schedule(state, now)
            link = self.links.get(known.host_id)
            if link is None:
                continue
            if is_new:
                self._greet(link, state)
            elif state.version > state.held_version:
                self._desk.assignment_wanted(self.place, known.host_id)

    def forget(self, host_id: UUID) -> None:
        """The host is shut out."""
        state = self.hosts.pop(host_id, None)
        for vpg in state.intervals if state else ():
            self._means.agenda.remove((self.place, host_id, vpg))

    def close(self) -> None:
        """Another process owns the place now, or nobody."""
        for host_id in list(self.hosts):
            self.forget(host_id)
        for answered in list(self._pending.values()):
            answered(None)
        self._pending.clear()

    def raised(self, epoch: int) -> None:
        """Our epoch is higher now; everybody is told."""
        self.route = Route(self.place, self.route.process, epoch, self.route.address)
        self._numbers.clear()
        unknown: set[UUID] = set()
        for host_id, link in list(self.links.items()):
            state = self.hosts.get(host_id)
            if state is None:
                unknown.add(host_id)
            else:
                self._greet(link, state)
        if unknown:
            self._desk.hosts_wanted(self.place, unknown)

    def _greet(self, link: Link, state: HostState) -> None:
        if link.hello.epoch > self.route.epoch:
            return  # it would obey nothing of ours; `raised` comes back to it
        state.seen_at = self._means.now()
        state.held_version = link.hello.assignment
        self._send(
            link,
            Welcome(
                epoch=self.route.epoch,
                heartbeat_seconds=self._means.heartbeat_seconds,
                time_ns=int(self._means.wall().timestamp() * 1e9),
                inventory=state.digest,
            ),
        )
        self._desk.held(self.place, state.host_id, state.held_version)
        if state.version > state.held_version:
            self._desk.assignment_wanted(self.place, state.host_id)
        self.review(state)

    def _schedule(self, state: HostState, now: float) -> None:
        for vpg, every in state.intervals.items():
            key = (self.place, state.host_id, vpg)
            if every is None:
                self._means.agenda.remove(key)
            else:
                self._means.agenda.put(key, every, now, salt=crc32(vpg.encode()))

    # ------------------------------------------------------------------ what is sent

    def _send(self, link: Link, message: FromManager) -> bool:
        """Whether it was sent: not by a process that may not act."""
        if not self._means.may_act():
            self._means.metrics.withheld.inc()
            return False
        link.send(control.encode(message))
        self._means.metrics.sent.inc()
        return True

    def _next(self, host_id: UUID) -> int:
        self._numbers[host_id] = self._numbers.get(host_id, 0) + 1
        return self._numbers[host_id]

    def command(self, host_id: UUID, body: Body, on_answer: OnAnswer) -> int | None:
        """Send a command; its number, None if the host is not there. `on_answer` is called once."""
        link = self.links.get(host_id)
        if link is None or host_id not in self.hosts:
            return None
        number = self._next(host_id)
        self._pending[host_id, number] = on_answer
        if not self._send(link, control.command(self.route.epoch, number, body)):
            del self._pending[host_id, number]
            return None
        return number

    def push(self, host_id: UUID, assignment: Assignment) -> None:
        """Send the host what it is to protect."""
        link, state = self.links.get(host_id), self.hosts.get(host_id)
        if link is None or state is None or assignment.version <= state.held_version:
            return
        number = self._next(host_id)
        self._pending[host_id, number] = partial(self._assigned, host_id, assignment.version)
        self._send(link, AssignmentPush(self.route.epoch, number, assignment))

    def _assigned(self, host_id: UUID, version: int, answer: Answer | None) -> None:
        state = self.hosts.get(host_id)
        if answer is None or answer.outcome != "done" or state is None:
            return
        state.held_version = max(state.held_version, version)
        self._desk.held(self.place, host_id, version)
        self.review(state)

    def reply(self, host_id: UUID, message: FromManager) -> None:
        """Answer what the host asked."""
        link = self.links.get(host_id)
        if link is not None:
            self._send(link, message)

    def checkpoint(self, host_id: UUID, vpg: str) -> None:
        """A group's next automatic checkpoint, unless its host or its journal is not there."""
        state, key = self.hosts.get(host_id), (host_id, vpg)
        facts = next((one for one in state.groups if one.vpg == vpg), None) if state else None
        now = self._means.now()
        if now - self._checkpointing.get(key, float("-inf")) < _ANSWER_SECONDS_MAX:
            return
        if facts is None or facts.generation is None:
            return
        at = self._means.wall()
        asked = _Asked(vpg, automatic_id(vpg, at), at, now)
        body = control.Checkpoint(vpg, asked.id)
        self._checkpointing[key] = now
        if self.command(host_id, body, partial(self._checkpointed, key, asked)) is None:
            del self._checkpointing[key]

    def _checkpointed(self, key: tuple[UUID, str], asked: _Asked, answer: Answer | None) -> None:
        self._checkpointing.pop(key, None)
        if answer is None:
            return
        marked = None if answer.outcome != "done" else self._marked(asked, answer)
        if marked is None:
            self._means.metrics.checkpoints_failed.inc()
            self._desk.mark_failed(self.place, asked.vpg, asked.at, answer)
            return
        self._means.metrics.checkpoints.inc()
        self._means.metrics.response.observe(marked.response_us / _MICROSECONDS)
        state = self.hosts.get(key[0])
        if state is not None and (late := state.mark(marked)):
            self._desk.marked(self.place, key[0], late)

    def _marked(self, asked: _Asked, answer: Answer) -> Marked | None:
        result = answer.result or {}
        generation, seq = result.get("generation"), result.get("seq")
        source = result.get("source_time_ns")
        if not (isinstance(generation, str) and isinstance(seq, int) and isinstance(source, int)):
            return None
        response = int((self._means.now() - asked.sent_at) * _MICROSECONDS)
        return Marked(asked.vpg, asked.id, asked.at, source, generation, seq, response)

    def is_stored(self, host_id: UUID, vpg: str, answer: Answer) -> bool:
        """Whether the journal has the position that the answer to a checkpoint names."""
        state, result = self.hosts.get(host_id), answer.result or {}
        seq = result.get("seq")
        return isinstance(seq, int) and any(
            facts.vpg == vpg
            and facts.generation == result.get("generation")
            and facts.stored_seq >= seq
            for facts in (state.groups if state else ())
        )

    # ------------------------------------------------------------------ what is heard

    def said(self, link: Link, message: FromHost) -> None:
        """A host's message."""
        host_id = link.peer.host_id
        state = self.hosts.get(host_id)
        if state is None or self.links.get(host_id) is not link:
            return
        if isinstance(message, Heartbeat):
            self._beat(state, message)
        elif isinstance(message, Answer):
            self._answered(link, message)
        elif isinstance(message, Inventory):
            if message.digest != state.digest:
                self._desk.inventory_came(self.place, host_id, message)
        elif isinstance(message, DataKeyRequest):
            self._desk.key_asked(self.place, host_id, message)
        elif isinstance(message, Event):
            self._desk.happened(self.place, host_id, message)
        elif isinstance(message, Progress) and message.epoch == self.route.epoch:
            self._desk.progressed(self.place, host_id, message)

    def _beat(self, state: HostState, beat: Heartbeat) -> None:
        done = state.heard(beat, self._means.now())
        if done:
            self._desk.marked(self.place, state.host_id, done)
        self.review(state)

    def _answered(self, link: Link, answer: Answer) -> None:
        if answer.epoch == self.route.epoch:
            waiting = self._pending.pop((link.peer.host_id, answer.number), None)
            if waiting is not None:
                waiting(answer)
        # Of an older epoch: its command is sent again if it is still wanted.
        self._send(link, Taken(answer.epoch, answer.number))

    def inventory_kept(self, host_id: UUID, digest: str) -> None:
        """The database has the host's inventory."""
        state = self.hosts.get(host_id)
        if state is not None:
            state.digest = digest

    def review(self, state: HostState) -> None:
        """Ask for a row where one is due."""
        now = self._means.now()
        status = state.status(now, self._means.heartbeat_seconds)
        if state.is_row_due(status, now):
            state.written, state.written_at = status, now
            self._desk.status_changed(self.route, state, status)


@dataclass(frozen=True)
class _Asked:
    vpg: str
    id: str
    at: datetime
    sent_at: float


def automatic_id(vpg: str, expected_at: datetime) -> str:
    """The identifier of a group's automatic checkpoint, as markers have it."""
    return checkpoint_id(parse(Kind.VPG, vpg), milliseconds(expected_at)).hex
