"""Clear headers and index parts: one encoding, and every other sequence of bytes refused."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import limits
from host_agent.wire.errors import ChecksumMismatch, LimitExceeded, WireError
from host_agent.wire.frame import (
    FrameHeader,
    Marker,
    decode_index,
    encode_index,
    header_length,
)
from tests.model.sectors import crc32c
from tests.wire.samples import Batch, batches, seal, typical

HEADER = seal(typical()).header


def sign(data: bytes) -> bytes:
    """The header with the checksum that its other bytes have: what a forger would do."""
    blank = data[:252] + bytes(4) + data[256:]
    return data[:252] + crc32c(blank).to_bytes(4, "little") + data[256:]


def test_header_keeps_every_field() -> None:
    data = HEADER.pack()
    assert len(data) == HEADER.length == 256 + 2 * 40
    assert header_length(data[:8]) == len(data)
    assert FrameHeader.unpack(data + b"what follows") == HEADER
    assert FrameHeader.unpack(memoryview(data)).pack() == data


def test_header_lies_where_the_format_says() -> None:
    data = HEADER.pack()
    assert data[:6] == b"HFFR\x01\x00"
    assert struct.unpack_from("<I", data, 12)[0] == HEADER.records
    assert data[16:32] == HEADER.generation
    assert data[32:64] == HEADER.salt
    assert data[64:96] == HEADER.commitment
    assert struct.unpack_from("<QQQQQ", data, 96) == (
        HEADER.counter,
        HEADER.first_seq,
        HEADER.last_seq,
        HEADER.time_first,
        HEADER.time_last,
    )
    assert data[136:168] == HEADER.record_hash
    assert struct.unpack_from("<IIII", data, 168) == (
        HEADER.index_sealed,
        HEADER.index_plain,
        HEADER.payload_sealed,
        HEADER.payload_plain,
    )
    assert struct.unpack_from("<QH", data, 184) == (HEADER.disk_bytes, 2)
    assert struct.unpack_from("<I", data, 252)[0] == crc32c(data[:252] + bytes(4) + data[256:])


@given(batches())
@settings(max_examples=50, deadline=None)
def test_headers_and_indexes_round_trip(batch: Batch) -> None:
    frame = seal(batch)
    assert FrameHeader.unpack(frame.header_bytes) == frame.header
    plain = encode_index(batch.records)
    decoded = decode_index(plain, len(batch.rows), batch.rows[0][0])
    assert decoded.tobytes() == batch.records.tobytes()
    assert encode_index(decoded) == plain


@pytest.mark.invariant("I10")
def test_any_changed_bit_of_a_header_is_found() -> None:
    data = HEADER.pack()
    for at in range(len(data)):
        for bit in range(8):
            spoiled = bytearray(data)
            spoiled[at] ^= 1 << bit
            with pytest.raises(WireError):
                FrameHeader.unpack(bytes(spoiled))


@pytest.mark.invariant("I10")
def test_a_header_signed_anew_is_refused_or_canonical() -> None:
    """Nothing that decodes may be another way to write the same thing (in the minor version 0)."""
    data = HEADER.pack()
    accepted = 0
    for at in range(len(data)):
        for value in (0, 1, 0x55, 0xFF):
            forged = sign(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                header = FrameHeader.unpack(forged)
            except WireError:
                continue
            accepted += 1
            assert header.pack() == forged or forged[5]
    assert accepted > 200  # the generation, salt, hashes and counters may be anything


@pytest.mark.parametrize("cut", [0, 4, 7, 8, 255, 256, 300])
def test_cut_off_headers_are_refused(cut: int) -> None:
    with pytest.raises(WireError):
        FrameHeader.unpack(HEADER.pack()[:cut])


def _with(at: int, kind: str, value: int) -> bytes:
    data = bytearray(HEADER.pack())
    struct.pack_into(kind, data, at, value)
    return sign(bytes(data))


FORGED: list[tuple[str, int, str, int]] = [
    ("magic", 0, "<I", 0),
    ("version", 4, "<B", 2),
    ("length-too-small", 6, "<H", 255),
    ("length-too-large", 6, "<H", 256 + 40 * 65),
    ("length-of-other-count", 6, "<H", 256 + 40),
    ("state-none", 8, "<B", 0),
    ("state-dirty", 8, "<B", 2),
    ("flags", 9, "<B", 8),
    ("codec", 10, "<B", 2),
    ("reserved", 11, "<B", 1),
    ("no-records", 12, "<I", 0),
    ("too-many-records", 12, "<I", limits.FRAME_RECORDS_MAX + 1),
    ("first-sequence-zero", 104, "<Q", 0),
    ("last-sequence", 112, "<Q", 18),
    ("times-run-back", 128, "<Q", 1),
    ("index-of-no-bytes", 168, "<I", 16),
    ("index-too-large", 168, "<I", limits.PART_SEALED_BYTES_MAX + 1),
    ("index-plain", 172, "<I", 39),
    ("payload-too-large", 176, "<I", limits.PART_SEALED_BYTES_MAX + 1),
    ("payload-a-tag-alone", 176, "<I", 16),
    ("payload-without-plain", 180, "<I", 0),
    ("payload-plain-too-large", 180, "<I", limits.FRAME_PLAIN_BYTES_MAX + 1),
    ("marker-count", 192, "<H", 1),
    ("spare", 194, "<B", 1),
    ("marker-scope", 256 + 32, "<B", 4),
    ("marker-kind", 256 + 33, "<B", 0),
    ("marker-spare", 256 + 39, "<B", 1),
    ("marker-outside", 256 + 16, "<Q", 99),
    ("marker-before", 256 + 16, "<Q", 0),
    ("marker-time", 256 + 24, "<Q", 1),
]


@pytest.mark.parametrize(
    ("at", "kind", "value"), [f[1:] for f in FORGED], ids=[f[0] for f in FORGED]
)
def test_impossible_headers_are_refused(at: int, kind: str, value: int) -> None:
    with pytest.raises(WireError):
        FrameHeader.unpack(_with(at, kind, value))


def test_a_later_minor_version_may_use_what_is_reserved() -> None:
    data = bytearray(_with(5, "<B", 1))
    data[200] = 7
    assert FrameHeader.unpack(sign(bytes(data))) == HEADER


WRONG: list[dict[str, Any]] = [
    {"generation": bytes(15)},
    {"salt": bytes(33)},
    {"commitment": b""},
    {"record_hash": bytes(31)},
    {"counter": 1 << 64},
    {"counter": -1},
    {"disk_bytes": 1 << 64},
    {"records": 5},
    {"last_seq": (1 << 63) + 16, "first_seq": 1 << 63},
]


@pytest.mark.parametrize("change", WRONG, ids=lambda change: next(iter(change)))
def test_impossible_headers_are_not_packed(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        replace(HEADER, **change).pack()


def test_markers_are_bounded_and_in_order() -> None:
    def marker(seq: int) -> Marker:
        return Marker(bytes(16), seq, HEADER.time_last, 1, 1)

    wide = replace(HEADER, records=100, last_seq=100, index_plain=4000)
    most = replace(wide, markers=tuple(marker(seq) for seq in range(1, 65)))
    assert FrameHeader.unpack(most.pack()) == most
    with pytest.raises(LimitExceeded):
        replace(wide, markers=tuple(marker(seq) for seq in range(1, 66))).pack()
    for seqs in ((3, 3), (4, 3)):
        with pytest.raises(WireError, match="order"):
            replace(wide, markers=tuple(marker(seq) for seq in seqs)).pack()


def test_an_unknown_version_says_so() -> None:
    with pytest.raises(WireError, match="version 9") as caught:
        FrameHeader.unpack(_with(4, "<B", 9))
    assert caught.value.hint


def test_a_checksum_is_named_as_such() -> None:
    data = bytearray(HEADER.pack())
    data[140] ^= 1
    with pytest.raises(ChecksumMismatch):
        FrameHeader.unpack(bytes(data))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_changed_indexes_are_refused_or_canonical(data: st.DataObject) -> None:
    batch = typical()
    plain = bytearray(encode_index(batch.records))
    for _ in range(data.draw(st.integers(1, 4))):
        plain[data.draw(st.integers(0, len(plain) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_index(bytes(plain), len(batch.rows), 1)
    except WireError:
        return
    assert encode_index(decoded) == plain


@pytest.mark.parametrize(("count", "first"), [(0, 1), (16, 1), (18, 1), (17, 0), (17, 1 << 63)])
def test_indexes_of_another_size_or_place_are_refused(count: int, first: int) -> None:
    plain = encode_index(typical().records)
    with pytest.raises(WireError):
        decode_index(plain, count, first)


def test_random_bytes_are_no_index() -> None:
    rng = random.Random(7)
    for _ in range(300):
        count = rng.randint(1, 20)
        with pytest.raises(WireError):
            decode_index(rng.randbytes(40 * count), count, 1)
