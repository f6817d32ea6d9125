"""Decisions over WELCOME, CLOSE and failures, one row each."""

from __future__ import annotations

import pytest

from host_agent.stream.errors import (
    CertificateRefused,
    DataKeyMissing,
    JournalDiffers,
    LinkLost,
    NotAttached,
    PeerClosed,
    RingChanged,
    RingDamaged,
    StoredDiffers,
    StreamTaken,
    TapGone,
)
from host_agent.stream.session import (
    FAILURES_BEFORE_ALERT,
    OWN_FENCE_SECONDS,
    RENEWALS_MAX,
    RENEWALS_SECONDS,
    Decider,
    Renew,
    Reopen,
    Retry,
    RingPosition,
    Stop,
    judge_welcome,
)
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.message import Close, Welcome
from host_agent.wire.record import State
from host_agent.wire.tapctl import TapRefused
from tests.stream.harness import Randomness

GENERATION = bytes(range(16))
HASH = bytes(range(32))


def welcome(**fields: object) -> Welcome:
    given: dict[str, object] = {
        "version": 1,
        "epoch": 3,
        "generation": GENERATION.hex(),
        "stored": 100,
        "record_hash": HASH.hex(),
        "state": 1,
        "place": 7,
        "window_bytes": 1 << 20,
        "frame_bytes_max": 1 << 23,
        "begin": "resume",
    }
    return Welcome(**{**given, **fields})  # type: ignore[arg-type]


def ring(freed: int, head: int) -> RingPosition:
    return RingPosition(GENERATION, freed, head)


@pytest.mark.parametrize(("freed", "head"), [(0, 100), (50, 200), (100, 100)])
def test_a_position_that_the_ring_has_is_resumed_if_the_hash_is_ours(freed: int, head: int) -> None:
    resume = judge_welcome(welcome(), ring(freed, head))
    assert (resume.first, resume.verify, resume.state) == (101, HASH, State.RECORDING)


def test_nothing_stored_yet_is_resumed_from_the_beginning() -> None:
    resume = judge_welcome(welcome(stored=0, record_hash="", state=0), ring(0, 10))
    assert (resume.first, resume.verify, resume.state) == (1, bytes(32), State.SYNCING)


@pytest.mark.parametrize(
    ("freed", "head", "fields"),
    [
        pytest.param(101, 200, {}, id="journal lost what was stored"),
        pytest.param(0, 99, {}, id="journal is ahead of the ring"),
        pytest.param(1, 9, {"begin": "new_generation"}, id="journal does not know the generation"),
    ],
)
def test_a_ring_that_cannot_continue_the_journal(
    freed: int, head: int, fields: dict[str, object]
) -> None:
    with pytest.raises(JournalDiffers):
        judge_welcome(welcome(**fields), ring(freed, head))


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 2},
        {"generation": "00" * 16},
        {"generation": None},
        {"record_hash": "00"},
        {"record_hash": "zz" * 32},
    ],
)
def test_a_welcome_that_makes_no_sense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(WireError):
        judge_welcome(welcome(**fields), ring(0, 200))


def closed(code: str, retry: float | None = 1.0) -> PeerClosed:
    return PeerClosed(Close(code, "why", "what to do", retry))


def decider(addresses: int = 2) -> Decider:
    return Decider(Randomness(), addresses)


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (LinkLost("x"), Retry),
        (CertificateRefused("x"), Retry),
        (StoredDiffers("x"), Retry),
        (WireError("x"), Retry),
        (closed("store_error"), Retry),
        (closed("stopping", 0.0), Retry),
        (closed("not_authorised", None), Retry),
        (closed("a_code_of_tomorrow"), Retry),
        (closed("fenced", None), Stop),
        (closed("replaced", None), Stop),
        (closed("generation_ended", None), Stop),
        (closed("equivocation", None), Stop),
        (StreamTaken("x"), Stop),
        (TapGone("x"), Reopen),
        (RingChanged("x"), Reopen),
        (NotAttached("x"), Reopen),
        (TapRefused({"error": "not_open"}), Reopen),
        (TapRefused({"error": "internal"}), Retry),
        (JournalDiffers("x"), Renew),
        (DataKeyMissing("x"), Renew),
        (RingDamaged("x"), Renew),
    ],
)
def test_each_failure_has_its_action(error: HoldfastError, action: type) -> None:
    assert isinstance(decider().on_failure(error, 0.0), action)


def test_a_stream_that_stopped_says_so_until_it_is_released() -> None:
    one = decider()
    one.on_failure(closed("fenced", None), 0.0)
    assert one.alert is not None
    assert one.alert.stops
    one.on_success()
    assert one.alert is not None, "no success of an older session clears it"
    one.release()
    assert one.alert is None


def test_a_fence_by_a_connection_that_we_gave_up_is_our_own() -> None:
    one = decider()
    one.on_hello()
    assert isinstance(one.on_failure(LinkLost("no WELCOME"), 10.0), Retry)
    one.on_hello()
    one.on_welcome()
    assert isinstance(one.on_failure(closed("fenced", None), 11.0), Retry)
    one.on_hello()
    one.on_welcome()
    assert isinstance(one.on_failure(closed("fenced", None), 12.0), Stop), "but only once"


def test_an_old_hello_excuses_no_fence() -> None:
    one = decider()
    one.on_hello()
    one.on_failure(LinkLost("no WELCOME"), 0.0)
    action = one.on_failure(closed("replaced", None), OWN_FENCE_SECONDS + 1)
    assert isinstance(action, Stop)


def test_a_refusal_is_no_abandoned_hello() -> None:
    one = decider()
    one.on_hello()
    assert isinstance(one.on_failure(closed("fenced", None), 1.0), Stop)


def test_addresses_are_tried_in_turn_after_the_same_one_again() -> None:
    one = decider(3)
    tried = [one.on_failure(LinkLost("x"), 0.0) for _ in range(5)]
    assert [action.address for action in tried if isinstance(action, Retry)] == [0, 1, 2, 0, 1]


def test_a_passing_fault_alerts_only_after_several() -> None:
    one = decider()
    for _ in range(FAILURES_BEFORE_ALERT - 1):
        one.on_failure(LinkLost("x"), 0.0)
        assert one.alert is None
    one.on_failure(LinkLost("x"), 0.0)
    assert one.alert is not None
    assert not one.alert.stops
    one.on_success()
    assert one.alert is None


def test_what_needs_a_person_alerts_at_once() -> None:
    one = decider()
    one.on_failure(closed("not_authorised", None), 0.0)
    assert one.alert is not None
    assert one.alert.code == "not_authorised"


def test_generations_are_not_renewed_for_ever() -> None:
    one = decider()
    for turn in range(RENEWALS_MAX):
        assert isinstance(one.on_failure(JournalDiffers("x"), float(turn)), Renew)
    assert isinstance(one.on_failure(JournalDiffers("x"), 10.0), Stop)
    later = decider()
    for turn in range(10):
        action = later.on_failure(JournalDiffers("x"), turn * RENEWALS_SECONDS / RENEWALS_MAX)
        assert isinstance(action, Renew)
