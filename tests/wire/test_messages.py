"""Messages of a session and of tap control: total, bounded, exact."""

from __future__ import annotations

import json
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import limits, tapctl
from host_agent.wire.errors import ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.message import (
    Close,
    CommitNow,
    Hello,
    Message,
    MessageType,
    Probe,
    Probed,
    Received,
    Stored,
    Throttle,
    Welcome,
    pack,
    pack_frame_head,
    pack_head,
    parse_body,
    parse_head,
)
from tests.model.sectors import crc32c

HEX32, HEX64 = "0123456789abcdef" * 2, "fe" * 32
MESSAGES: list[Message] = [
    Hello(1, "holdfast 0.1.0", "acme", "erp", "host-1", HEX32, None, 5, 9, {"version": 1}, 1.5),
    Welcome(1, 3, HEX32, 5, HEX64, 1, 7, 64 << 20, 4 << 20, "resume"),
    Welcome(1, 3, None, 0, HEX64, 0, 1, 64 << 20, 4 << 20, "new_generation"),
    Received(17),
    Stored(3, HEX32, 17, HEX64, 8),
    Probe(1),
    Probed(1, HEX32, 17, 1),
    Throttle(1 << 20, "The night's limit."),
    Close("fenced", "Another writer claimed the chain.", "Look for a second agent.", None),
    Close("stopping", "Going down.", retry_seconds=2.0),
    CommitNow((1 << 63) - 1),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_round_trip(message: Message) -> None:
    data = pack(message)
    number, length = parse_head(data[:16])
    assert length == len(data) - 16
    assert MessageType(number).name.replace("_", "").lower() == type(message).__name__.lower()
    assert parse_body(number, data[16:]) == message
    assert pack(parse_body(number, memoryview(data)[16:])) == data


def test_head_lies_where_the_format_says() -> None:
    head = pack_frame_head(0x01020304)
    assert head[:12] == b"HFM1\x03\0\0\0\x04\x03\x02\x01"[:12]
    assert struct.unpack_from("<I", head, 12)[0] == crc32c(head[:12])


@pytest.mark.invariant("I10")
def test_any_changed_bit_of_a_head_is_found() -> None:
    head = pack(MESSAGES[0])[:16]
    for at in range(16):
        for bit in range(8):
            spoiled = bytearray(head)
            spoiled[at] ^= 1 << bit
            with pytest.raises(WireError):
                parse_head(bytes(spoiled))


@pytest.mark.parametrize("size", [0, 1, 15, 17])
def test_heads_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(WireError):
        parse_head(pack_frame_head(5).ljust(32, b"\0")[:size])


@given(st.binary(min_size=16, max_size=16))
@settings(max_examples=200, deadline=None)
def test_head_is_total(head: bytes) -> None:
    with pytest.raises(WireError):
        parse_head(head)


def _head(number: int, length: int, flags: int = 0, reserved: int = 0) -> bytes:
    head = struct.pack("<4sBBHI", b"HFM1", number, flags, reserved, length)
    return head + crc32c(head).to_bytes(4, "little")


def test_lengths_are_bounded_before_anything_is_allocated() -> None:
    assert parse_head(_head(3, limits.MESSAGE_BYTES_MAX)) == (3, limits.MESSAGE_BYTES_MAX)
    assert parse_head(_head(1, limits.MESSAGE_JSON_BYTES_MAX))[0] == 1
    for number, length in (
        (3, limits.MESSAGE_BYTES_MAX + 1),
        (1, limits.MESSAGE_JSON_BYTES_MAX + 1),
        (200, limits.MESSAGE_JSON_BYTES_MAX + 1),
        (3, 0xFFFFFFFF),
    ):
        with pytest.raises(LimitExceeded):
            parse_head(_head(number, length))
    with pytest.raises(LimitExceeded):
        pack(Hello(1, "x" * 70_000, "t", "g", "h", HEX32, None, 0, 0, {}, 1.0))


def test_unknown_types_below_128_are_refused_and_others_left_to_skip() -> None:
    for number in (0, 11, 127):
        with pytest.raises(WireError, match="unknown"):
            parse_head(_head(number, 0))
    assert parse_head(_head(128, 9)) == (128, 9)
    for number in (3, 130, 11):
        with pytest.raises(WireError, match="no JSON body"):
            parse_body(number, b"{}")


def test_reserved_bytes_of_a_head_are_checked() -> None:
    for bad in (_head(4, 0, flags=1), _head(4, 0, reserved=1)):
        with pytest.raises(WireError, match="newer version"):
            parse_head(bad)


def test_a_head_with_a_wrong_checksum_is_named_as_such() -> None:
    with pytest.raises(ChecksumMismatch):
        parse_head(_head(4, 7)[:-1] + b"\0")


BODIES: list[tuple[int, str]] = [
    (4, ""),
    (4, "null"),
    (4, "[]"),
    (4, "{}"),
    (4, '{"seq": -1}'),
    (4, '{"seq": 9223372036854775808}'),
    (4, '{"seq": 1e3}'),
    (4, '{"seq": "1"}'),
    (4, '{"seq": true}'),
    (4, '{"seq": 1, "more": 2}'),
    (4, '{"seq": 1} '[:-2]),
    (4, '{"seq": 1' + "0" * 5000 + "}"),
    (4, "[" * 60_000),
    (
        5,
        f'{{"epoch": 1, "generation": "{HEX32}x", "seq": 1, "record_hash": "{HEX64}", "place": 1}}',
    ),
    (5, f'{{"epoch": 1, "generation": "{HEX32}", "seq": 1, "record_hash": "{HEX32}", "place": 1}}'),
    (7, f'{{"probe": 1, "generation": "{HEX32}\\n", "head": 1, "state": 1}}'),
    (7, f'{{"probe": 1, "generation": "{HEX32}", "head": 1, "state": 4}}'),
    (7, f'{{"probe": 1, "generation": "{HEX32.upper()}", "head": 1, "state": 1}}'),
    (9, '{"code": "x", "message": "y", "retry_seconds": -1}'),
    (9, '{"code": "x", "message": "y", "retry_seconds": 1e999}'),
    (9, '{"code": "x", "message": "' + "y" * 5000 + '"}'),
]


@pytest.mark.parametrize(("number", "body"), BODIES)
def test_malformed_bodies_are_refused(number: int, body: str) -> None:
    with pytest.raises(WireError):
        parse_body(number, body.encode())


def test_bodies_that_are_no_text_are_refused() -> None:
    with pytest.raises(WireError):
        parse_body(9, b'{"code": "\xff", "message": ""}')


def test_welcome_knows_two_ways_to_begin() -> None:
    body = json.loads(pack(MESSAGES[1])[16:])
    body["begin"] = "perhaps"
    with pytest.raises(WireError):
        parse_body(2, json.dumps(body).encode())


@given(st.sampled_from(MESSAGES), st.data())
@settings(max_examples=150, deadline=None)
def test_body_is_total(message: Message, data: st.DataObject) -> None:
    packed = pack(message)
    body = bytearray(packed[16:])
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse_body(packed[4], bytes(body))
    except WireError:
        return
    assert parse_body(packed[4], pack(parsed)[16:]) == parsed


def test_heads_of_every_type() -> None:
    for number in MessageType:
        assert parse_head(pack_head(number, 5)) == (number, 5)


# Tap control


def test_tap_requests_and_answers() -> None:
    sent = tapctl.request(7, "free", seq=5, anchor=0)
    assert tapctl.decode(sent) == {"id": 7, "do": "free", "seq": 5, "anchor": 0}
    assert tapctl.answer({"id": 7, "ok": True, "head": 1})["head"] == 1


def test_a_refusal_of_the_tap_keeps_its_words() -> None:
    refusal = {
        "id": 1,
        "ok": False,
        "error": "not_recording",
        "message": "The stream is dirty.",
        "hint": "Wait for the sync.",
        "retry": True,
    }
    with pytest.raises(tapctl.TapRefused) as caught:
        tapctl.answer(tapctl.decode(msgspec.json.encode(refusal)))
    assert caught.value.as_dict() == {
        "error": "not_recording",
        "message": "The stream is dirty.",
        "hint": "Wait for the sync.",
        "retryable": True,
    }
    with pytest.raises(tapctl.TapRefused):
        tapctl.answer({})


def test_tap_messages_are_bounded_and_total() -> None:
    with pytest.raises(LimitExceeded):
        tapctl.encode({"body": "x" * limits.TAP_MESSAGE_BYTES_MAX})
    with pytest.raises(LimitExceeded):
        tapctl.decode(b" " * (limits.TAP_MESSAGE_BYTES_MAX + 1))
    for bad in (b"", b"[]", b"1", b"{", b"\xff", b"[" * 60_000, b'{"a": ' * 9_000):
        with pytest.raises(WireError):
            tapctl.decode(bad)
