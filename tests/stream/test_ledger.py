"""What is in flight, and what a confirmation is worth."""

from __future__ import annotations

import pytest

from host_agent.stream.errors import StoredDiffers
from host_agent.stream.ledger import FRAMES_MAX, Freed, Ledger, Sent, Terms
from host_agent.wire.errors import WireError
from host_agent.wire.message import Stored

GENERATION = bytes(16)


def digest(seq: int) -> bytes:
    return seq.to_bytes(32, "big")


def sent(last: int, size: int = 100) -> Sent:
    return Sent(last, size, 10, 50, digest(last), last // 4096 * 4096, digest(last // 4096))


def stored(
    seq: int, epoch: int = 5, hash_of: int | None = None, generation: bytes = GENERATION
) -> Stored:
    record_hash = digest(seq if hash_of is None else hash_of).hex()
    return Stored(epoch, generation.hex(), seq, record_hash, 9)


def ledger(window: int = 1000) -> Ledger:
    return Ledger(Terms(5, window, 1 << 23), GENERATION, 100)


def test_stored_frees_up_to_the_frame_with_its_anchor() -> None:
    one = ledger()
    for last in (4000, 5000, 9000):
        one.add(sent(last))
    freed, frames = one.on_stored(stored(5000))
    assert freed == Freed(5000, 4096, digest(1))
    assert [frame.last_seq for frame in frames] == [4000, 5000]
    assert (one.stored, one.unstored_bytes) == (5000, 100)


def test_an_acknowledgement_of_another_epoch_or_generation_frees_nothing() -> None:
    one = ledger()
    one.add(sent(110))
    for message in (stored(110, epoch=4), stored(110, epoch=6), stored(110, generation=b"g" * 16)):
        assert one.on_stored(message) == (None, [])
    assert (one.stored, one.ignored) == (100, 3)


@pytest.mark.invariant("I2")
def test_another_record_hash_frees_nothing() -> None:
    one = ledger()
    one.add(sent(110))
    with pytest.raises(StoredDiffers):
        one.on_stored(stored(110, hash_of=111))
    assert one.stored == 100


@pytest.mark.parametrize("seq", [111, 105])
def test_what_was_never_sent_cannot_be_stored(seq: int) -> None:
    one = ledger()
    one.add(sent(110))
    with pytest.raises(WireError):
        one.on_stored(stored(seq))


def test_a_repeated_acknowledgement_changes_nothing() -> None:
    one = ledger()
    one.add(sent(110))
    one.on_stored(stored(110))
    assert one.on_stored(stored(110)) == (None, [])


def test_received_is_bounded_by_sent() -> None:
    one = ledger()
    one.add(sent(110))
    one.on_received(110)
    assert (one.received, one.stored) == (110, 100), "received is not stored"
    with pytest.raises(WireError):
        one.on_received(111)


@pytest.mark.invariant("I12")
def test_window_and_count_bound_what_is_in_flight() -> None:
    one = ledger(window=1000)
    assert one.has_room(5000), "a single frame always may leave"
    one.add(sent(101, 600))
    assert one.has_room(400)
    assert not one.has_room(401)
    many = ledger(window=1 << 60)
    for number in range(FRAMES_MAX):
        assert many.has_room(1)
        many.add(sent(101 + number, 1))
    assert not many.has_room(1)
