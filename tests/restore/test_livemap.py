"""A map in the making answers as the whole one does, whichever of them is asked."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.restore.replay import build
from workers.journal import pitmap
from workers.journal.errors import UnknownBase
from workers.journal.mapfile import MapDisk
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.restore.livemap import LiveMap


@pytest.mark.parametrize("ranges", [0, 1, 1000], ids=["by cells", "by both", "by ranges"])
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_before_and_after_it_is_whole_it_says_the_same(
    seed: int, ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pitmap, "CELL_WRITES", 5)
    monkeypatch.setattr(pitmap, "_RANGES_FIRST", ranges)
    builder, store = build(seed)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        live = LiveMap(journal, resolve(journal, "latest-write"))
        with closing(live):
            before = [_bytes(live, number) for number in range(len(live.disks))]
            live.whole()
            assert [_bytes(live, number) for number in range(len(live.disks))] == before
            assert any(before)


def _bytes(live: LiveMap, number: int) -> list[tuple[int, int, int]]:
    """Sector, frame and place of all that a disk has, asked for at once and bit by bit."""
    disk = live.disks[number]
    whole = _sectors(live, disk, 0, disk.size)
    by_bits = []
    for at in range(0, disk.size, 1536):
        by_bits += _sectors(live, disk, at, min(1536, disk.size - at))
    assert by_bits == whole
    return whole


def _sectors(live: LiveMap, disk: MapDisk, offset: int, length: int) -> list[tuple[int, int, int]]:
    return [
        (sector, frame, at + sector - start)
        for start, length, frame, at in live.find(disk, offset, length).tolist()
        for sector in range(start, start + length, 512)
    ]


def test_a_saved_map_is_used_and_none_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, store = build(24)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        point = resolve(journal, "latest-write")
        with closing(LiveMap(journal, point, tmp_path)) as first:
            wanted = _bytes(first, 0)
            first.whole()
        assert len(list(tmp_path.iterdir())) == 1
        monkeypatch.setattr(pitmap, "paint_cell", None)
        with closing(LiveMap(journal, point, tmp_path)) as second:
            assert _bytes(second, 0) == wanted


def test_what_lies_under_an_unknown_base_is_told_before_anything_is_served() -> None:
    builder, store = build(25)
    builder.generation({"root": 64 * 512}, goes_on=True)
    builder.end()
    builder.segment()
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        journal.timeline.generations[-1].predecessor = bytes(16)
        with pytest.raises(UnknownBase):
            LiveMap(journal, resolve(journal, "latest-write"))
