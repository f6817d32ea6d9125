"""Packs of checkpoints: what goes in comes out, what is no pack is refused, and how small it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.checkpoints.identity import checkpoint_id, expected_of, milliseconds, moment_of
from app.checkpoints.merging import PackKey, Taken, key_for, merge, open_pack
from app.checkpoints.packing import (
    COMPLETE,
    PACK_MS,
    BadPack,
    Columns,
    make_columns,
    pack,
    unpack,
)
from app.checkpoints.state import CheckpointState

VPG, HOSTS = UUID(int=7), (UUID(int=1), UUID(int=2), UUID(int=3))
BEGIN = datetime(2026, 11, 22, 22, 10, tzinfo=UTC)
_WORD = st.integers(-(2**62), 2**62)


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    hosts = HOSTS[: draw(st.integers(0, 3))]
    expected = sorted(draw(st.sets(st.integers(0, PACK_MS - 1), max_size=40)))
    rows = [(at, *(draw(_WORD) for _ in range(5))) for at in expected]
    positions = [[draw(st.integers(0, 2**62)) for _ in hosts] for _ in rows]
    return make_columns(hosts, rows, positions)


@given(columns())
def test_what_is_packed_comes_out_again(given_columns: Columns) -> None:
    again = unpack(pack(given_columns))
    assert again.hosts == given_columns.hosts
    for name in ("expected", "taken", "flags", "response", "hold", "skew", "positions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(given_columns, name))


@given(columns(), st.data())
def test_a_pack_that_is_cut_or_goes_on_is_refused(
    given_columns: Columns, data: st.DataObject
) -> None:
    packed = pack(given_columns)
    length = data.draw(st.integers(0, len(packed) - 1))
    for wrong in (packed[:length], packed + b"\0"):
        with pytest.raises(BadPack):
            unpack(wrong)


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused_or_are_a_pack(data: bytes) -> None:
    try:
        found = unpack(data)
    except BadPack:
        return
    assert len(found) == 0 or int(found.expected[-1]) < PACK_MS


def test_a_checkpoint_takes_few_bytes() -> None:
    random = np.random.default_rng(3)
    count = PACK_MS // 5000
    for hosts, limit in ((1, 8.5), (2, 15.5), (3, 19.5)):
        costs = random.gamma(2, 2000, (4, count)).astype(np.int64)
        steps = random.gamma(1.5, 20_000, (count, hosts)).astype(np.int64)
        made = Columns(
            hosts=HOSTS[:hosts],
            expected=np.arange(count, dtype=np.int64) * 5000 + 137,
            taken=costs[0],
            flags=np.full(count, 1 | COMPLETE, np.int64),
            response=costs[1],
            hold=costs[2] if hosts > 1 else np.zeros(count, np.int64),
            skew=costs[3] if hosts > 1 else np.zeros(count, np.int64),
            positions=np.cumsum(steps, axis=0) + (1 << 40),
        )
        assert len(pack(made)) / count <= limit


def _taken(seconds: float, state: CheckpointState = CheckpointState.COMPLETE) -> Taken:
    at = BEGIN + timedelta(seconds=seconds)
    key = checkpoint_id(VPG, milliseconds(at))
    cut = at + timedelta(microseconds=1234)
    return Taken(VPG, key, at, cut, state, positions={HOSTS[0]: int(seconds * 10) + 1})


def test_merging_adds_completes_and_forgets_nothing() -> None:
    first, second = _taken(1), _taken(2, CheckpointState.PENDING)
    key = key_for(first)
    assert key == PackKey(VPG, milliseconds(BEGIN)) == key_for(second)
    before = merge(key, None, [second, first])
    assert open_pack(key, before) == [first, second]
    after = merge(key, unpack(pack(before)), [_taken(2), _taken(1, CheckpointState.PENDING)])
    assert open_pack(key, after) == [first, _taken(2)]


def test_hosts_that_come_and_go_keep_their_own_positions() -> None:
    moved = Taken(**{**vars(_taken(3)), "positions": {HOSTS[1]: 9}})
    key = key_for(moved)
    opened = open_pack(key, unpack(pack(merge(key, None, [_taken(1), moved]))))
    assert [dict(one.positions) for one in opened] == [{HOSTS[0]: 11}, {HOSTS[1]: 9}]


@given(st.uuids(), st.integers(0, 2**47))
def test_an_identifier_leads_back_to_its_time(vpg_id: UUID, stamp: int) -> None:
    made = checkpoint_id(vpg_id, stamp)
    assert (expected_of(made), made.version) == (stamp, 7)
    assert made != checkpoint_id(vpg_id, stamp + 1)


@given(st.integers(0, 4_000_000_000_000_000))
def test_milliseconds_are_rounded_down(microseconds: int) -> None:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
    stamp = milliseconds(moment)
    assert moment_of(stamp) <= moment < moment_of(stamp + 1)
