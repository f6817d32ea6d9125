"""The map equals a dictionary of sectors under drawn workloads; saved maps are used only if they
are right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.builder import JournalBuilder
from tests.model.model import (
    BEGIN,
    DETACH,
    DISK,
    RESIZE,
    SECTOR,
    SYNC,
    SYNC_ZERO,
    TRIM,
    WRITE,
    ZERO,
    Event,
)
from tests.model.store import MemoryStore
from tests.restore.images import Images
from tests.restore.replay import build, wrong_moments
from workers.journal import mapfile, pitmap
from workers.journal.errors import SpoolFull, UnknownBase
from workers.journal.mapfile import MapSeal, MapUnusable, load_map
from workers.journal.pitmap import get_map, map_seal
from workers.journal.points import resolve
from workers.journal.reader import Journal, open_journal

SECTORS = 24
ranges = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, SECTORS)).map(
    lambda pair: (pair[0], min(pair[1], SECTORS - pair[0]))
)
#: (what, range, how far back a sync block's read began)
steps = st.lists(
    st.tuples(
        st.sampled_from([WRITE, WRITE, WRITE, ZERO, TRIM, SYNC, SYNC, SYNC_ZERO, RESIZE]),
        ranges,
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=25,
)


def drawn_journal(
    drawn: list[tuple[int, tuple[int, int], int]],
) -> tuple[JournalBuilder, MemoryStore]:
    """The steps as records; a sector's bytes tell which step wrote it."""
    store = MemoryStore()
    builder = JournalBuilder(store)
    builder.generation({"root": SECTORS * SECTOR})
    builder.end()
    for number, (op, (sector, count), back) in enumerate(drawn, 1):
        data = bytes([number]) * (count * SECTOR) if op in (WRITE, SYNC) else b""
        aux = max(0, builder.model.seq - back) if op in (SYNC, SYNC_ZERO) else 0
        if op == RESIZE:
            builder.resize(0, max(1, sector) * SECTOR)
            builder.resize(0, SECTORS * SECTOR)
        else:
            builder.record(Event(op, 0, sector * SECTOR, count * SECTOR, data, aux))
        if number % 7 == 0:
            builder.segment()
        elif number % 3 == 0:
            builder.frame()
    builder.segment()
    return builder, store


@pytest.mark.invariant("I3")
@settings(max_examples=120, deadline=None)
@given(steps)
def test_equals_the_model_for_any_workload(
    drawn: list[tuple[int, tuple[int, int], int]],
) -> None:
    builder, store = drawn_journal(drawn)
    wrong, compared = wrong_moments(builder, store)
    assert not wrong
    assert compared


@contextmanager
def opened(builder: JournalBuilder) -> Iterator[Journal]:
    builder.segment()
    with open_journal(builder.store, builder.identity, builder.tenant_key) as journal:
        assert journal.damage is None, journal.damage
        yield journal


def image_of(builder: JournalBuilder, selector: str = "latest-write") -> dict[str, bytes]:
    with opened(builder) as journal:
        return Images(journal).at(selector)


# -- disks that come, go, change their numbers


def test_a_disk_that_joins_is_there_from_then_on() -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 4096})
    before = builder.end()
    builder.record(Event(DISK, body={"disk": 1, "name": "data", "size": 1024}))
    builder.begin({"root": 4096, "data": 1024}, cause="disk_added")
    builder.sync(1, 0, b"d" * 512, builder.model.seq)
    builder.end()
    assert image_of(builder, f"seq:{before}") == {"root": bytes(4096)}
    assert image_of(builder) == {"root": bytes(4096), "data": b"d" * 512 + bytes(512)}


def test_a_disk_that_left_is_gone_and_its_number_may_mean_another() -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 1024, "old": 512})
    builder.end()
    kept = builder.write(1, 0, b"o" * 512)
    builder.record(Event(DETACH, body={"disk": 1, "name": "old"}))
    builder.record(Event(DISK, body={"disk": 1, "name": "new", "size": 1024}))
    builder.begin({"root": 1024, "new": 1024}, cause="disk_added")
    builder.end()
    builder.write(1, 512, b"n" * 512)
    assert image_of(builder, f"seq:{kept}")["old"] == b"o" * 512
    assert image_of(builder) == {"root": bytes(1024), "new": bytes(512) + b"n" * 512}


def test_a_generation_without_predecessor_starts_from_nothing() -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 1024})
    builder.end()
    builder.write(0, 0, b"a" * 1024)
    builder.generation({"root": 1024})
    builder.sync(0, 512, b"b" * 512, 0)
    builder.end()
    assert image_of(builder)["root"] == bytes(512) + b"b" * 512


def unknown_predecessor(covered: int) -> JournalBuilder:
    """A generation that goes on from one that never reached the journal, and read `covered`
    bytes."""
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 2048})
    builder.end()
    builder.generation({"root": 2048}, goes_on=False)
    builder.log.clear()
    pending = builder._pending
    body = {
        "cause": "ring_lost",
        "generation": builder.generations[-1].hex(),
        "predecessor": "ab" * 16,
        "last_good": 0,
        "disks": [{"disk": 0, "name": "root", "size": 2048}],
    }
    pending.rows.clear()
    pending.payload.clear()
    builder.model.seq = 0
    builder.record(Event(BEGIN, body=body))
    builder.record(Event(SYNC_ZERO, 0, 0, covered, aux=0))
    builder.end()
    return builder


def test_an_unknown_predecessor_does_not_matter_if_everything_was_read_anew() -> None:
    assert image_of(unknown_predecessor(2048)) == {"root": bytes(2048)}


@pytest.mark.invariant("I10")
def test_an_unknown_predecessor_is_an_error_where_something_was_not_read() -> None:
    with pytest.raises(UnknownBase):
        image_of(unknown_predecessor(1536))


def test_a_disk_of_the_largest_size_needs_no_memory_for_it() -> None:
    size = 64 << 40
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": size, "data": size})
    for at in range(0, 8 << 32, 1 << 32):
        builder.record(Event(SYNC_ZERO, 1, at, (1 << 32) - 512, aux=1)) if at < SECTOR else None
    builder.end()
    builder._pending.rows.append(  # the model would need every sector
        (4, builder.now, size - 512, 0, 512, 0, 0, 1, ZERO, 0)
    )
    with opened(builder) as journal:
        found = get_map(journal, resolve(journal, "latest-write"))
        assert [disk.size for disk in found.disks] == [size, size]
        assert [disk.data_bytes for disk in found.disks] == [0, 0]
        found.close()


# -- lookups


def test_find_gives_the_pieces_of_a_range_cut_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pitmap, "CELL_WRITES", 5)
    builder, store = build(11)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        images = Images(journal)
        found = get_map(journal, resolve(journal, "latest-write"))
        whole = images.of_map(found)
        rng = random.Random(1)
        for disk in found.disks:
            for _ in range(200):
                start = rng.randrange(disk.size // 512) * 512
                length = rng.randrange(1, (disk.size - start) // 512 + 1) * 512
                out = bytearray(length)
                for at, size, frame, position in found.find(disk, start, length).tolist():
                    data = images._payload(frame)[position : position + size]
                    out[at - start : at - start + size] = data
                assert bytes(out) == whole[disk.name][start : start + length]
        found.close()


# -- saved maps


def usable(path: Path, seal: MapSeal) -> bool:
    found = load_map(path, seal)
    if found is not None:
        found.close()
    return found is not None


def test_a_saved_map_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, store = build(12)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        images = Images(journal)
        point = resolve(journal, "latest-write")
        made = get_map(journal, point, tmp_path)
        first = images.of_map(made)
        made.close()
        assert len(list(tmp_path.glob("*.map"))) == 1
        assert not [p for p in tmp_path.iterdir() if p.suffix != ".map"]
        monkeypatch.setattr(pitmap, "build_map", None)
        saved = get_map(journal, point, tmp_path)
        assert images.of_map(saved) == first
        saved.close()


def test_a_saved_map_of_another_point_is_not_used(tmp_path: Path) -> None:
    builder, store = build(12)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        for selector in ("latest", "latest-write"):
            get_map(journal, resolve(journal, selector), tmp_path).close()
        files = sorted(tmp_path.glob("*.map"))
        assert len(files) == 2
        files[0].write_bytes(files[1].read_bytes())
        seals = [map_seal(journal, resolve(journal, s)) for s in ("latest", "latest-write")]
        fits = [usable(path, seal) for path in files for seal in seals]
        assert sum(fits) == 2
        assert len({fits[0], fits[1]}) == 2


@pytest.mark.invariant("I10")
def test_a_changed_saved_map_is_never_used(tmp_path: Path) -> None:
    builder, store = build(12)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        images = Images(journal)
        point = resolve(journal, "latest-write")
        made = get_map(journal, point, tmp_path)
        right = images.of_map(made)
        made.close()
        path = next(tmp_path.glob("*.map"))
        data = path.read_bytes()
        rng = random.Random(2)
        noticed = 0
        for at in [
            *range(len(data) - 60, len(data)),
            *(rng.randrange(len(data)) for _ in range(200)),
        ]:
            spoiled = bytearray(data)
            spoiled[at] ^= 1 << rng.randrange(8)
            path.write_bytes(spoiled)
            found = load_map(path, map_seal(journal, point))
            if found is None:
                noticed += 1
                continue
            try:
                assert images.of_map(found) == right
            except MapUnusable:
                noticed += 1
            finally:
                found.close()
        assert noticed > 200
        for length in (0, 1, 47, 48, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            assert load_map(path, map_seal(journal, point)) is None


def test_a_map_made_with_another_key_is_not_used(tmp_path: Path) -> None:
    builder, store = build(12)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        point = resolve(journal, "latest-write")
        get_map(journal, point, tmp_path).close()
        seal = map_seal(journal, point)
        assert usable(next(tmp_path.glob("*.map")), seal)
        foreign = MapSeal(seal.subject, bytes(32))
        assert not usable(next(tmp_path.glob("*.map")), foreign)


def test_no_room_for_the_map_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: object, _data: bytes) -> None:
        raise SpoolFull("The map cannot be written: No space left on device.")

    monkeypatch.setattr(mapfile.MapWriter, "_write", full)
    builder, store = build(12)
    with (
        open_journal(store, builder.identity, builder.tenant_key) as journal,
        pytest.raises(SpoolFull),
    ):
        get_map(journal, resolve(journal, "latest-write"), tmp_path)
    assert not list(tmp_path.iterdir())
