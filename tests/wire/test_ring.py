"""The ring's reader against a ring written from the description alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire.errors import ChecksumMismatch, WireError
from host_agent.wire.record import RECORD, Op
from host_agent.wire.ring import RingHeader, RingView
from tests.model.sectors import crc32c
from tests.wire.samples import GENERATION, START, Batch, RingFile, batches, typical


def _ring(slots: int = 64, size: int = 64 << 10, batch: Batch | None = None) -> RingFile:
    ring = RingFile(slots, size)
    ring.fill(batch or typical())
    return ring


def _view(ring: RingFile) -> RingView:
    return RingView(memoryview(bytes(ring.data)))


def test_header() -> None:
    header = RingHeader.parse(bytes(_ring().data))
    assert header.generation == GENERATION
    assert (header.index_capacity, header.payload_capacity) == (64, 64 << 10)
    assert (header.index_offset, header.payload_offset) == (4352, 4352 + 64 * 64)
    assert header.predecessor is None
    assert header.made_at == START
    assert header.file_bytes == len(_ring().data)


@pytest.mark.invariant("I10")
def test_any_changed_byte_of_the_header_is_found() -> None:
    data = _ring().data
    for at in range(128):
        spoiled = bytearray(data)
        spoiled[at] ^= 0x20
        with pytest.raises(WireError):
            RingHeader.parse(bytes(spoiled))


def _signed(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(_ring().data)
    change(data)
    data[12:16] = crc32c(bytes(data[16:128])).to_bytes(4, "little")
    return bytes(data)


def _put(at: int, value: int, kind: str = "<Q") -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(kind, data, at, value)


@pytest.mark.parametrize(
    "change",
    [
        _put(8, 3, "<I"),
        _put(8, 1, "<I"),
        _put(88, 4095),
        _put(96, 17, "<I"),
        _put(32, 0),
        _put(32, 48),
        _put(32, 1 << 63),
        _put(40, 0),
        _put(40, 4097),
        _put(40, 1 << 62),
        _put(48, 0),
        _put(56, 4096),
        _put(56, (1 << 64) - 1),
        _put(120, 1),
    ],
    ids=[
        "version", "table-of-version-1", "table-in-header", "table-in-index",
        "no-slots", "odd-slots", "slots-without-end", "no-payload", "odd-payload",
        "payload-without-end", "index-in-header", "areas-overlap", "payload-far-away", "reserved",
    ],
)  # fmt: skip
def test_impossible_headers_are_refused(change: Callable[[bytearray], None]) -> None:
    with pytest.raises(WireError):
        RingView(memoryview(_signed(change)))


def test_a_ring_cut_off_is_refused() -> None:
    data = bytes(_ring().data)
    for cut in (0, 8, 127, 4096, len(data) - 1):
        with pytest.raises(WireError):
            RingView(memoryview(data[:cut]))


def test_records_and_payloads_come_back() -> None:
    batch = typical()
    view = _view(_ring(batch=batch))
    entries = view.records(1, len(batch.rows))
    for name in RECORD.names or ():
        assert (entries[name] == batch.records[name]).all()
    assert b"".join(view.payload_spans(entries)) == batch.payload
    some = view.records(4, 6)
    assert b"".join(view.payload_spans(some)) == b"".join(batch.payloads[3:6])
    assert view.payload_spans(view.records(9, 10)) == []


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_ring_that_goes_round(data: st.DataObject) -> None:
    """Whatever is still in the ring reads back, over both areas' ends, in few spans."""
    ring = RingFile(16, 16 << 10)
    batch = Batch()
    for _ in range(data.draw(st.integers(17, 60))):
        op = data.draw(st.sampled_from([Op.WRITE, Op.WRITE, Op.FLUSH]))
        batch.add(op, length=data.draw(st.sampled_from([512, 1024, 2048])))
    ring.fill(batch)
    view = _view(ring)
    last = len(batch.rows)
    newest = 0
    first = last
    while first > 1 and last - first < 15:  # as far back as nothing was overwritten
        newest += len(batch.payloads[first - 1])
        if newest + len(batch.payloads[first - 2]) + 2048 > 16 << 10:
            break
        first -= 1
    entries = view.records(first, last)
    spans = view.payload_spans(entries)
    assert b"".join(spans) == b"".join(batch.payloads[first - 1 : last])
    assert len(spans) <= 2


def test_a_payload_that_ends_with_the_area() -> None:
    """The next one begins at the area's start and follows it absolutely: two spans, no error."""
    ring = RingFile(16, 4096)
    batch = Batch()
    for length in (2048, 2048, 1024):
        batch.add(Op.WRITE, length=length)
    ring.fill(batch)
    entries = _view(ring).records(2, 3)
    spans = _view(ring).payload_spans(entries)
    assert [bytes(span) for span in spans] == batch.payloads[1:3]


def test_a_skipped_end_of_the_area() -> None:
    ring = RingFile(16, 4096)
    batch = Batch()
    for length in (1024, 2560, 1024):
        batch.add(Op.WRITE, length=length)
    ring.fill(batch)
    entries = _view(ring).records(2, 3)
    assert int(entries[1]["payload_pos"]) == 4096
    assert [bytes(s) for s in _view(ring).payload_spans(entries)] == batch.payloads[1:3]


@pytest.mark.invariant("I10")
def test_any_changed_byte_of_an_entry_is_found() -> None:
    ring = _ring()
    for at in range(64):
        spoiled = bytearray(ring.data)
        spoiled[ring.index_at + 5 * 64 + at] ^= 0x80
        view = RingView(memoryview(bytes(spoiled)))
        with pytest.raises(ChecksumMismatch):
            view.records(1, 17)
        assert len(view.records(6, 17)) == 12


def test_control_a_reader_that_skips_the_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = _ring()
    view = _view(ring)
    ring.data[ring.index_at + 5 * 64 + 16] ^= 0x80
    spoiled = _view(ring)
    monkeypatch.setattr("host_agent.wire.ring.crc32c", lambda data: 0)
    monkeypatch.setattr("host_agent.wire.ring._sound_crc", lambda count: 0)
    assert spoiled.records(1, 17)["offset"][4] != view.records(1, 17)["offset"][4]


@given(batches(), st.data())
@settings(max_examples=40, deadline=None)
def test_damaged_batches_of_entries_are_found(batch: Batch, data: st.DataObject) -> None:
    first, last = batch.rows[0][0], batch.rows[-1][0]
    ring = _ring(32, 64 << 10, batch)
    assert len(_view(ring).records(first, last)) == len(batch.rows)
    slot = data.draw(st.sampled_from(batch.rows))[0] % 32
    at = ring.index_at + slot * 64 + data.draw(st.integers(0, 63))
    ring.data[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ChecksumMismatch):
        _view(ring).records(first, last)


@pytest.mark.invariant("I10")
def test_entries_of_another_lap_are_found() -> None:
    ring = RingFile(16, 64 << 10)
    batch = Batch()
    for _ in range(20):
        batch.add(Op.FLUSH)
    ring.fill(batch)
    view = _view(ring)
    assert len(view.records(5, 20)) == 16
    for first, last in ((4, 19), (1, 16), (20, 21), (21, 21)):
        with pytest.raises(ChecksumMismatch, match="lap"):
            view.records(first, last)


def test_an_entry_of_the_same_slot_one_round_of_laps_later_is_found() -> None:
    """The lap has 32 bits; the sequence itself tells laps apart that are further away."""
    ring = RingFile(16, 4096)
    batch = Batch()
    batch.add(Op.FLUSH, after=16 << 32)
    ring.fill(batch)
    seq = batch.rows[0][0]
    assert len(_view(ring).records(seq, seq)) == 1
    with pytest.raises(ChecksumMismatch):
        _view(ring).records(1, 1)


@pytest.mark.parametrize(
    ("first", "last"), [(0, 1), (2, 1), (-1, 3), (1, 65), (1 << 63, 1 << 63), (1, 1 << 64)]
)
def test_impossible_ranges_are_refused(first: int, last: int) -> None:
    with pytest.raises(WireError):
        _view(_ring()).records(first, last)


@pytest.mark.parametrize(
    "position", [(64 << 10) - 1024, (1 << 64) - 512, (3 << 60) + (64 << 10) - 512]
)
def test_payloads_that_cross_the_areas_end_are_refused(position: int) -> None:
    batch = Batch()
    batch.add(Op.WRITE, length=4096)
    view = _view(_ring(batch=batch))
    entries: Any = view.records(1, 1)
    entries["payload_pos"] = position
    with pytest.raises(ChecksumMismatch):
        view.payload_spans(entries)
