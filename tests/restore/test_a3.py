"""A3: restore to every sequence number equals an independent model, with the source gone.

Random workloads with overlaps, partial blocks, zeroes, trims, FUA, the last sector, syncs that race
with writes, resizes, renumbered disks, several frames, segments, writers and generations. Only the
bucket and the tenant's key are left when the restore begins. Each control breaks the map in one
way, and the same comparison must notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from host_agent.wire.record import Op
from tests.model.model import BEGIN, MORE, RESIZE, SYNC, SYNC_ZERO, TRIM, WRITE, ZERO
from tests.model.workload import FUA, Shape
from tests.restore.replay import build, wrong_moments
from workers.journal import pitmap, sources
from workers.journal.paint import Painted, paint

pytestmark = pytest.mark.invariant("I3", "I4")

CONTROL_SEEDS = range(100, 112)


@pytest.mark.parametrize("seed", range(16))
def test_a3_restore_every_sequence(seed: int) -> None:
    builder, store = build(seed)
    wrong, compared = wrong_moments(builder, store)
    assert not wrong
    assert compared > 30


@pytest.mark.parametrize("seed", range(40, 44))
def test_a3_restore_every_sequence_when_the_map_is_made_in_many_parts(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pitmap, "CELL_WRITES", 8)
    monkeypatch.setattr(sources, "BATCH_ROWS", 13)
    builder, store = build(seed)
    wrong, compared = wrong_moments(builder, store)
    assert not wrong
    assert compared > 30


def test_a3_restore_every_sequence_of_one_crowded_disk() -> None:
    """Few sectors and many writes: nearly every write covers another."""
    builder, store = build(7, Shape({"root": 9}, operations=150))
    wrong, compared = wrong_moments(builder, store)
    assert not wrong
    assert compared > 100


def test_a3_restore_every_sequence_over_many_generations() -> None:
    builder, store = build(8, Shape({"root": 30, "data": 20}, generation_chance=0.12))
    assert len(builder.generations) > 3
    wrong, _ = wrong_moments(builder, store)
    assert not wrong


def test_workloads_hold_what_they_claim() -> None:
    seen: set[int] = set()
    flags = 0
    for seed in range(16):
        builder, _ = build(seed)
        seen |= {recorded.event.op for recorded in builder.log}
        for recorded in builder.log:
            flags |= recorded.event.flags
    assert {WRITE, ZERO, TRIM, SYNC, SYNC_ZERO, RESIZE, BEGIN} <= seen
    assert flags & MORE
    assert flags & FUA


def earlier_wins(start: Any, end: Any) -> Painted:
    found = paint(start[::-1], end[::-1])
    return Painted(found.start, found.end, (len(start) - 1 - found.winner).astype(np.int32))


def one_dropped(start: Any, end: Any) -> Painted:
    return paint(start[:-1], end[:-1])


def _ties_reversed(columns: dict[str, Any], low: Any, high: Any) -> Painted:
    order = np.lexsort((-np.arange(len(columns["key"])), columns["key"]))
    found = paint(np.maximum(columns["start"], low)[order], np.minimum(columns["end"], high)[order])
    return Painted(found.start, found.end, order[found.winner].astype(np.int32))


def _without(table: Any, *ops: int) -> Any:
    changed = table.copy()
    changed[list(ops)] = False
    return changed


CONTROLS: dict[str, tuple[str, Callable[[], Any]]] = {
    "the earlier write wins": ("paint", lambda: earlier_wins),
    "one overlap is dropped": ("paint", lambda: one_dropped),
    "ties of the order are reversed": ("paint_cell", lambda: _ties_reversed),
    "sync blocks order by their sequence": ("_SYNC", lambda: np.zeros(256, bool)),
    "trims are not applied": ("_WRITES", lambda: _without(sources._WRITES, Op.TRIM)),
    "zeroes are not applied": ("_WRITES", lambda: _without(sources._WRITES, Op.ZERO)),
    "holes of a sync are not applied": ("_WRITES", lambda: _without(sources._WRITES, Op.SYNC_ZERO)),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a3_notices_a_broken_map(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, broken = CONTROLS[name]
    where = pitmap if hasattr(pitmap, attribute) else sources
    monkeypatch.setattr(where, attribute, broken())
    assert any(wrong_moments(*build(seed))[0] for seed in CONTROL_SEEDS)


def test_a3_notices_cuts_that_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sources._View, "cuts", lambda _self: {n: np.empty(0, k) for n, k in sources.KINDS.items()}
    )
    shape = Shape({"root": 64}, resize_chance=0.2)
    assert any(wrong_moments(*build(seed, shape))[0] for seed in CONTROL_SEEDS)
