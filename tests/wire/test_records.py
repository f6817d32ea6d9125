"""Records: what is valid, and how they order."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import limits, record
from host_agent.wire.errors import WireError
from host_agent.wire.record import (
    NO_DISK,
    RECORD,
    RING_ENTRY,
    Flag,
    Op,
    check_records,
    has_body,
    order_keys,
    writes_disk,
)
from tests.wire.samples import Batch, batches, typical

DISK_MAX = limits.DISK_BYTES_MAX


def test_layout_is_the_documented_one() -> None:
    at = {name: RECORD.fields[name][1] for name in RECORD.names or ()}  # type: ignore[index]
    assert at == {
        "seq": 0, "time": 8, "offset": 16, "aux": 24, "length": 32, "crc": 36,
        "payload_length": 40, "disk": 44, "op": 46, "flags": 47,
    }  # fmt: skip
    assert RING_ENTRY.fields is not None
    assert [RING_ENTRY.fields[n][1] for n in ("payload_pos", "lap", "entry_crc")] == [48, 56, 60]


def test_every_kind_is_valid() -> None:
    batch = typical()
    assert {row[8] for row in batch.rows} == set(Op)
    check_records(batch.records, 1)


@given(batches())
@settings(max_examples=60, deadline=None)
def test_drawn_batches_are_valid(batch: Batch) -> None:
    check_records(batch.records, batch.rows[0][0])


def _one(op: int, **fields: int) -> Batch:
    batch = Batch()
    batch.add(op, **fields)
    return batch


BAD: list[tuple[str, int, dict[str, Any]]] = [
    ("sequence", Op.WRITE, {"seq": 2}),
    ("unknown-op", 8, {}),
    ("unknown-op-zero", 0, {}),
    ("unknown-op-127", 127, {}),
    ("unknown-flag", Op.WRITE, {"flags": 8}),
    ("payload-shorter", Op.WRITE, {"payload_length": 256}),
    ("payload-too-large", Op.WRITE, {"length": (1 << 20) + 512, "payload_length": (1 << 20) + 512}),
    ("body-too-large", Op.MARK, {"payload_length": limits.BODY_BYTES_MAX + 1}),
    ("zero-with-payload", Op.ZERO, {"payload_length": 512}),
    ("flush-with-payload", Op.FLUSH, {"payload_length": 1}),
    ("checksum-of-nothing", Op.TRIM, {"crc": 1}),
    ("flush-with-range", Op.FLUSH, {"length": 512}),
    ("flush-with-offset", Op.FLUSH, {"offset": 512}),
    ("mark-with-offset", Op.MARK, {"offset": 512}),
    ("write-of-nothing", Op.WRITE, {"length": 0, "payload_length": 0, "crc": 0}),
    ("zero-of-nothing", Op.ZERO, {"length": 0}),
    ("beyond-the-disk", Op.WRITE, {"offset": DISK_MAX}),
    ("offset-wraps", Op.WRITE, {"offset": (1 << 64) - 512}),
    ("resize-beyond", Op.RESIZE, {"offset": DISK_MAX + 512}),
    ("resize-unaligned", Op.RESIZE, {"offset": 100}),
    ("unaligned-offset", Op.WRITE, {"offset": 1}),
    ("unaligned-length", Op.ZERO, {"length": 513}),
    ("sync-of-the-future", Op.SYNC, {"aux": 1}),
    ("write-with-position", Op.WRITE, {"aux": 1}),
    ("end-with-position", Op.END, {"aux": 1}),
    ("no-such-disk", Op.WRITE, {"disk": 256}),
    ("write-to-no-disk", Op.WRITE, {"disk": NO_DISK}),
    ("mark-on-a-disk", Op.MARK, {"disk": 0}),
    ("flush-in-pieces", Op.FLUSH, {"flags": Flag.MORE}),
    ("mark-in-pieces", Op.MARK, {"flags": Flag.TAIL}),
    ("sync-in-pieces", Op.SYNC, {"flags": Flag.MORE}),
]


@pytest.mark.parametrize(("op", "change"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_invalid_records_are_refused(op: int, change: dict[str, Any]) -> None:
    records = _one(op if op in set(Op) else Op.WRITE).records
    check_records(records, 1)
    records["op"] = op
    for name, value in change.items():
        records[name] = value
    with pytest.raises(WireError):
        check_records(records, 1)


_COLUMNS = tuple(RECORD.names or ())


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_plain_writes_are_seen_quickly_and_nothing_else_is(data: st.DataObject) -> None:
    """The quick look never lets through what the whole check refuses."""
    batch = Batch()
    for _ in range(data.draw(st.integers(1, 6))):
        batch.add(Op.WRITE)
    records = batch.records
    assert record._are_plain_writes(records, 1)
    for _ in range(data.draw(st.integers(0, 3))):
        name, row = (
            data.draw(st.sampled_from(_COLUMNS)),
            data.draw(st.integers(0, len(records) - 1)),
        )
        limit = (1 << 8 * RECORD[name].itemsize) - 1
        near = [int(records[name][row]) + n & limit for n in (-512, -1, 0, 1, 512)]
        ends = [0, 1, 255, 256, DISK_MAX, 1 << 20, (1 << 20) + 512, limit]
        records[name][row] = data.draw(st.sampled_from(near + [e for e in ends if e <= limit]))
    if record._are_plain_writes(records, 1):
        with mock.patch.object(record, "_are_plain_writes", return_value=False):
            check_records(records, 1)


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("op", [0, 8, 15, 24, 127])
def test_unknown_kinds_below_128_are_refused(op: int) -> None:
    """Skipping one that a reader must understand would give a wrong image."""
    records = _one(Op.FLUSH).records
    records["op"] = op
    records["disk"] = NO_DISK
    with pytest.raises(WireError, match="unknown kind"):
        check_records(records, 1)


def test_unknown_kinds_from_128_are_let_through() -> None:
    records = _one(Op.MARK).records
    records["op"] = 200
    records["aux"] = 77
    check_records(records, 1)
    assert has_body(records).all()
    assert not writes_disk(records).any()


@pytest.mark.parametrize("first", [0, -1, (1 << 63) - 1, 1 << 64])
def test_impossible_first_sequences_are_refused(first: int) -> None:
    with pytest.raises(WireError):
        check_records(_one(Op.FLUSH).records, first)


def test_times_that_run_back_are_refused() -> None:
    records = typical().records
    records["time"][4] = records["time"][3] - 1
    with pytest.raises(WireError, match="run back"):
        check_records(records, 1)


@pytest.mark.parametrize("flags", [(Flag.MORE, 0), (0, Flag.TAIL), (Flag.MORE, Flag.MORE)])
def test_pieces_must_continue_each_other(flags: tuple[int, int]) -> None:
    batch = Batch()
    for flag in flags:
        batch.add(Op.WRITE, flags=flag)
    with pytest.raises(WireError, match="continue"):
        check_records(batch.records, 1)


def test_sync_blocks_order_by_the_position_before_their_read() -> None:
    batch = Batch()
    for _ in range(5):
        batch.add(Op.WRITE)
    batch.add(Op.SYNC, aux=3)
    batch.add(Op.SYNC_ZERO, aux=5)
    batch.add(Op.TRIM)
    keys = order_keys(batch.records)
    assert keys.tolist() == [1, 2, 3, 4, 5, 3, 5, 8]
    ranked = sorted(zip(keys.tolist(), batch.records["seq"].tolist(), strict=True))
    assert [seq for _, seq in ranked] == [1, 2, 3, 6, 4, 5, 7, 8]


@given(batches())
@settings(max_examples=40, deadline=None)
def test_order_is_that_of_the_model(batch: Batch) -> None:
    expected = [row[3] if row[8] in (6, 7) else row[0] for row in batch.rows]
    assert order_keys(batch.records).tolist() == expected
    assert order_keys(batch.records).dtype == np.uint64
