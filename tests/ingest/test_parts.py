"""The parts that decide, alone: parser, gate, beginning, memory budget."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError
from host_agent.wire.frame import FrameHeader
from host_agent.wire.keys import TenantKey
from host_agent.wire.message import Message, Probed, pack, pack_frame_head, pack_head
from host_agent.wire.names import Identity
from host_agent.wire.segment import KIND_EPOCH, SegmentInfo
from tests.servers.agent import Source, make_hello
from workers.ingest.batch import ReceivedFrame
from workers.ingest.budget import Budget
from workers.ingest.decide import (
    NO_GENERATION,
    Admitted,
    Peer,
    Rules,
    StoredKey,
    admit,
    compare_key,
    decide_begin,
)
from workers.ingest.errors import CloseCode, SessionEnded
from workers.ingest.gate import FrameGate, StreamPoint, Verdict
from workers.ingest.parser import MessageParser, Taking

_SOURCE = Source(Identity("acme", "shop", "host1"), TenantKey.make("acme"))
_SOURCE.write(30, 2048)
RULES = Rules("acme", None, 0.2, 5.0)


@dataclass
class _Heard:
    """Everything that a parser told."""

    taking: Taking = Taking.TAKE
    events: list[object] = field(default_factory=list)

    def on_message(self, message: Message) -> None:
        self.events.append(message)

    def on_frame_header(self, header: FrameHeader, length: int) -> Taking:
        assert header.length + header.parts_length == length
        return self.taking

    def on_frame(self, frame: ReceivedFrame) -> None:
        self.events.append((frame.header, bytes(frame.index), bytes(frame.payload)))


def _feed(parser: MessageParser, data: bytes, rng: random.Random) -> None:
    """Give bytes in pieces of any size."""
    while data:
        room = parser.buffer()
        count = min(len(room), len(data), rng.choice([1, 7, 100, 5000, 1 << 20]))
        room[:count] = data[:count]
        parser.filled(count)
        data = data[count:]


def _conversation() -> tuple[bytes, list[object]]:
    sealer = _SOURCE.sealer()
    data, events = b"", []
    for first, last in ((1, 3), (4, 4), (5, 30)):
        frame = _SOURCE.seal(sealer, first, last)
        body = frame.header_bytes + frame.index + frame.payload
        message = Probed(first, "00" * 16, last, 1)
        data += pack_frame_head(len(body)) + body + pack(message) + pack_head(222, 70_00)
        data += bytes(7000)
        events += [(frame.header, frame.index, frame.payload), message]
    return data, events


class TestParser:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32))
    def test_pieces_of_any_size_make_the_same_messages(self, seed: int) -> None:
        data, events = _conversation()
        heard = _Heard()
        _feed(MessageParser(heard), data, random.Random(seed))
        assert heard.events == events

    def test_skipped_frames_leave_the_rest_in_step(self) -> None:
        data, events = _conversation()
        heard = _Heard(taking=Taking.SKIP)
        _feed(MessageParser(heard), data, random.Random(1))
        assert heard.events == events[1::2]

    def test_waiting_frame_takes_nothing_until_it_may(self) -> None:
        frame = _SOURCE.seal(_SOURCE.sealer(), 1, 5)
        heard = _Heard(taking=Taking.WAIT)
        parser = MessageParser(heard)
        body = frame.header_bytes + frame.index + frame.payload
        head = pack_frame_head(len(body)) + frame.header_bytes
        _feed(parser, head, random.Random(2))
        waits = [parser.waiting]
        assert len(parser.buffer()) == 0
        parser.take()
        waits.append(parser.waiting)
        assert waits == [True, False]
        assert len(parser.buffer()) == frame.header.parts_length
        _feed(parser, frame.index + frame.payload, random.Random(3))
        assert heard.events == [(frame.header, frame.index, frame.payload)]

    @pytest.mark.invariant("I10", "I12")
    @settings(max_examples=400, deadline=None)
    @given(st.binary(max_size=600), st.integers(0, 2**32))
    def test_any_bytes_are_a_message_or_a_named_error(self, noise: bytes, seed: int) -> None:
        """I10, I12: the parser is total, and its memory is what a session let in."""
        data, _ = _conversation()
        rng = random.Random(seed)
        at = rng.randrange(400)
        data = data[:at] + noise + data[at + len(noise) :]
        parser = MessageParser(_Heard())
        try:
            _feed(parser, data[: at + 2000], rng)
        except HoldfastError as error:
            told = error
        else:
            return
        assert told.message
        assert len(parser.buffer()) <= 2 * limits.PART_SEALED_BYTES_MAX


def _gate(start: int = 0, **changes: Any) -> FrameGate:
    time = int(_SOURCE.records[start - 1]["time"]) if start else 0
    point = StreamPoint(start, _SOURCE.hashes[start], time)
    return FrameGate(_SOURCE.generation, point, **changes)


def _judge(gate: FrameGate, header: FrameHeader) -> Verdict:
    return gate.judge(header, header.length + header.parts_length)


class TestGate:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(1, 8), min_size=1, max_size=8), st.integers(0, 5))
    def test_consecutive_frames_of_any_size_are_accepted(
        self, sizes: list[int], start: int
    ) -> None:
        gate, sealer, at = _gate(start), _SOURCE.sealer(), start
        for size in sizes:
            last = min(at + size, _SOURCE.head)
            if last == at:
                break
            header = _SOURCE.seal(sealer, at + 1, last).header
            assert _judge(gate, header) is Verdict.ACCEPT
            at = last
            assert gate.received_seq == at

    @pytest.mark.parametrize(
        ("first", "last", "code"),
        [
            (12, 13, CloseCode.SEQUENCE_GAP),
            (30, 31, CloseCode.SEQUENCE_GAP),
            (5, 8, CloseCode.SEQUENCE_GAP),
            (9, 12, CloseCode.SEQUENCE_GAP),
            (10, 11, CloseCode.SEQUENCE_GAP),
        ],
        ids=["gap", "far gap", "unknown repeat", "overlap", "partly new"],
    )
    def test_what_does_not_continue_ends_the_session(
        self, first: int, last: int, code: CloseCode
    ) -> None:
        header = _SOURCE.seal(_SOURCE.sealer(), first, min(last, _SOURCE.head)).header
        with pytest.raises(SessionEnded) as caught:
            _judge(_gate(10), header)
        assert caught.value.close is code

    def test_repeat_is_recognised_by_its_hash(self) -> None:
        sealer = _SOURCE.sealer()
        headers = [_SOURCE.seal(sealer, *span).header for span in ((1, 4), (2, 4), (1, 4))]
        gate = _gate()
        verdicts = [_judge(gate, header) for header in headers]
        assert verdicts == [Verdict.ACCEPT, Verdict.REPEATED, Verdict.REPEATED]
        other = replace(_SOURCE.seal(sealer, 3, 4).header, record_hash=bytes(32))
        with pytest.raises(SessionEnded) as caught:
            _judge(gate, other)
        assert caught.value.close is CloseCode.EQUIVOCATION

    def test_times_may_not_run_back_within_a_generation(self) -> None:
        header = _SOURCE.seal(_SOURCE.sealer(), 11, 12).header
        point = StreamPoint(10, _SOURCE.hashes[10], header.time_first + 1)
        with pytest.raises(SessionEnded) as caught:
            _judge(FrameGate(_SOURCE.generation, point), header)
        assert caught.value.close is CloseCode.BAD_FRAME

    @pytest.mark.invariant("I16")
    def test_used_salt_is_refused(self) -> None:
        """I16: also the first frame of a connection cannot bring one back."""
        header = _SOURCE.seal(_SOURCE.sealer(), 1, 2).header
        assert _judge(_gate(), header) is Verdict.ACCEPT
        with pytest.raises(SessionEnded):
            _judge(_gate(used_salts=frozenset({header.salt})), header)


def _end(generation: bytes, seq: int = 9) -> SegmentInfo:
    return SegmentInfo(
        kind=KIND_EPOCH,
        place=5,
        epoch=3,
        previous=bytes(32),
        identity_hash=_SOURCE.identity.hash,
        generation=generation,
        writer=bytes(16),
        first_seq=seq + 1,
        last_seq=seq,
        time_newest=1,
        committed_at=1,
        record_hash=bytes(32),
        state=1,
    )


OURS, OLDER, OTHER = b"o" * 16, b"p" * 16, b"x" * 16
ENDED, BROKEN = CloseCode.GENERATION_ENDED, CloseCode.CHAIN_BROKEN


class TestBeginning:
    @pytest.mark.parametrize(
        ("newest", "key", "expected"),
        [
            (None, StoredKey.MISSING, "new_generation"),
            (None, StoredKey.SAME, "new_generation"),
            (None, StoredKey.OTHER, ENDED),
            (NO_GENERATION, StoredKey.MISSING, "new_generation"),
            (NO_GENERATION, StoredKey.SAME, "new_generation"),
            (NO_GENERATION, StoredKey.OTHER, ENDED),
            (OURS, StoredKey.MISSING, BROKEN),
            (OURS, StoredKey.SAME, "resume"),
            (OURS, StoredKey.OTHER, ENDED),
            (OLDER, StoredKey.MISSING, "new_generation"),
            (OLDER, StoredKey.SAME, "new_generation"),
            (OLDER, StoredKey.OTHER, ENDED),
            (OTHER, StoredKey.MISSING, "new_generation"),
            (OTHER, StoredKey.SAME, ENDED),
            (OTHER, StoredKey.OTHER, ENDED),
        ],
    )
    def test_every_end_and_key(
        self, newest: bytes | None, key: StoredKey, expected: str | CloseCode
    ) -> None:
        hello = Admitted(_SOURCE.identity, OURS, OLDER, b"", 1.0)
        end = None if newest is None else _end(newest)
        if isinstance(expected, CloseCode):
            with pytest.raises(SessionEnded) as caught:
                decide_begin(hello, end, key)
            assert caught.value.close is expected
            assert caught.value.retry_seconds is None
            assert caught.value.hint
        else:
            assert decide_begin(hello, end, key) == expected

    def test_first_generation_has_no_predecessor_to_hide_behind(self) -> None:
        hello = Admitted(_SOURCE.identity, OURS, None, b"", 1.0)
        with pytest.raises(SessionEnded):
            decide_begin(hello, _end(OLDER), StoredKey.SAME)

    def test_key_objects_are_compared_by_content(self) -> None:
        assert compare_key(None, b"{}") is StoredKey.MISSING
        assert compare_key(b'{"a":1,"b":2}', b'{ "b": 2, "a": 1 }') is StoredKey.SAME
        assert compare_key(b'{"a":1}', b'{"a":2}') is StoredKey.OTHER
        assert compare_key(b"rubbish", b"{}") is StoredKey.OTHER

    def test_admission_takes_the_names_from_the_certificate(self) -> None:
        peer = Peer("acme", "host1", "here")
        admitted = admit(make_hello(_SOURCE), peer, RULES)
        assert admitted.identity == _SOURCE.identity
        assert admitted.commit_seconds == 0.2
        for other in (Peer("acme", "host2", ""), Peer("globex", "host1", "")):
            with pytest.raises(SessionEnded) as caught:
                admit(make_hello(_SOURCE), other, RULES)
            assert caught.value.close is CloseCode.NOT_AUTHORISED


class TestBudget:
    @pytest.mark.invariant("I12")
    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 2**32))
    def test_held_is_bounded_and_nobody_starves(self, seed: int) -> None:
        """I12: at most the limit and one frame for each session that held nothing."""
        rng = random.Random(seed)
        budget = Budget(100)
        held: dict[int, list[int]] = {number: [] for number in range(5)}
        woken = 0

        def wake() -> None:
            nonlocal woken
            woken += 1

        for _ in range(200):
            number, length = rng.randrange(5), rng.randrange(1, 20)
            if rng.random() < 0.6:
                before = woken
                if budget.take(length, holds_nothing=not held[number]):
                    held[number].append(length)
                else:
                    budget.wait(wake)
                    assert held[number]
                    assert woken == before
            elif held[number]:
                before = woken
                waiting = len(budget._waiting)
                budget.give_back(held[number].pop())
                assert woken == before + waiting
            assert budget.held == sum(map(sum, held.values())) <= 100 + 5 * 20
        for lengths in held.values():
            for length in lengths:
                budget.give_back(length)
        assert budget.held == 0
