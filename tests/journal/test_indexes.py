"""Opened by index objects, a journal gives what it gives opened by all its segments."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import Identity, chain_name, key_name
from tests.model.builder import JournalBuilder
from tests.model.model import BEGIN, DETACH, DISK, END, Event
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from tests.restore.images import Images
from tests.restore.replay import Moment, moments
from workers.journal import indexes, indexfile, indexing, pitmap
from workers.journal.errors import PayloadDamaged
from workers.journal.indexfile import IndexBuilder, parse_index
from workers.journal.indexing import write_indexes
from workers.journal.moment import open_at
from workers.journal.opening import KeyRing
from workers.journal.paint import U64, Painted, paint
from workers.journal.pitmap import get_map
from workers.journal.points import list_points, resolve
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.journal.selectors import format_time
from workers.journal.verify import verify
from workers.restore.listing import summarise
from workers.restore.livemap import LiveMap

SHAPE = Shape({"root": 64, "data": 40}, operations=110, segment_chance=0.35, frame_chance=0.5,
              generation_chance=0.02)  # fmt: skip
BY_INDEX = ReadOptions(use_index=True)

pytestmark = pytest.mark.invariant("I10")


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4, 16 and 64 places, so that a small journal has several levels."""
    monkeypatch.setattr(indexfile, "SPAN", 4)
    monkeypatch.setattr(indexfile, "LEVELS", 3)
    # And many sections, parts and cells, so that most writes lie in a part that is not read.
    monkeypatch.setattr(indexfile, "SECTION_ENTRIES", 3)
    monkeypatch.setattr(indexfile, "SECTION_ROWS", 5)
    monkeypatch.setattr(indexfile, "SECTION_FRAMES", 2)
    monkeypatch.setattr(indexing, "_PART_WRITES", 6)
    monkeypatch.setattr(indexing, "_GRAIN", 512)
    monkeypatch.setattr(indexes, "FRONT_BYTES", 1024)
    monkeypatch.setattr(pitmap, "CELL_WRITES", 5)


def build(seed: int, shape: Shape = SHAPE) -> tuple[JournalBuilder, MemoryStore]:
    rng = random.Random(seed)
    store = MemoryStore()
    builder = JournalBuilder(store, rng=rng)
    Workload(builder, shape, rng).run()
    return builder, store


def opened(builder: JournalBuilder, store: MemoryStore, options: ReadOptions) -> Journal:
    return open_journal(store, builder.identity, builder.tenant_key, options)


def wrong(builder: JournalBuilder, store: MemoryStore, every: int = 1) -> Iterator[str]:
    """Moments that, opened by index, are not the model's."""
    for number, moment in enumerate(moments(builder)):
        if number % every:
            continue
        try:
            answer = at(builder, store, moment.selector)
        except HoldfastError as error:
            if moment.may_be_chosen or not error.message:
                yield moment.selector
            continue
        if not moment.may_be_chosen or answer != moment.images:
            yield moment.selector


def at(builder: JournalBuilder, store: MemoryStore, selector: str) -> dict[str, bytes]:
    journal, point = open_at(store, builder.identity, builder.tenant_key, selector)
    with journal:
        return Images(journal).of(point)


def index_names(store: MemoryStore) -> list[str]:
    return sorted(name for name in store.objects if "/index/" in name)


@pytest.mark.parametrize("seed", range(1, 7))
def test_every_moment_is_the_models(seed: int) -> None:
    """The same bytes by index objects as by records."""
    builder, store = build(seed)
    written = write_indexes(store, builder.identity, builder.tenant_key)
    assert written.damage is None
    assert {name.split("/")[-2] for name in written.made} >= {"1", "2"}
    assert list(wrong(builder, store)) == []


def test_control_hidden_writes_that_come_back_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index in which the older of two writes hides the newer is found out."""

    def older_wins(start: U64, end: U64) -> Painted:
        painted = paint(start[::-1], end[::-1])
        return Painted(painted.start, painted.end, len(start) - 1 - painted.winner)

    builder, store = build(3)
    monkeypatch.setattr(indexing, "paint", older_wins)
    write_indexes(store, builder.identity, builder.tenant_key)
    assert list(wrong(builder, store))


@pytest.mark.parametrize("seed", [1, 4])
def test_listing_selectors_and_later_segments_agree(seed: int) -> None:
    builder, store = build(seed)
    plain = dict(store.objects)
    write_indexes(store, builder.identity, builder.tenant_key)
    for _ in range(3):
        builder.write(0, 0, bytes([7]) * 512)
        builder.mark(kind="tagged", tag=f"t{builder.model.seq}")
        builder.segment()
    whole = MemoryStore({**plain, **{n: d for n, d in store.objects.items() if "/chain/" in n}})
    with opened(builder, store, BY_INDEX) as short, opened(builder, whole, ReadOptions()) as long:
        assert short.damage is long.damage is None
        assert (short.rows, short.frames, short.segments) == (long.rows, long.frames, long.segments)
        assert len(short.column("row")) < len(long.column("row")) == long.rows
        assert list_points(short) == list_points(long)
        assert short.timeline.changes == long.timeline.changes
        assert summarise(short).as_dict() == summarise(long).as_dict()
        for text in ("latest", "latest-write", f"tag:t{builder.model.seq - 1}"):
            assert resolve(short, text) == resolve(long, text)
    times = [recorded.time for recorded in builder.log]
    for before, after in list(pairwise(times))[::9]:
        text = f"seq:{random.Random(before).randrange(1, 60)}"
        for selector in (text, f"time:{iso((before + after) // 2)}"):
            assert answer(builder, store, selector) == answer(builder, whole, selector)


def iso(time: int) -> str:
    return format_time(time)


def answer(builder: JournalBuilder, store: MemoryStore, selector: str) -> object:
    try:
        return at(builder, store, selector)
    except HoldfastError as error:
        return error.as_dict()


def test_few_objects_are_read() -> None:
    builder, store = build(2)
    places = sum("/chain/" in name for name in store.objects)
    write_indexes(store, builder.identity, builder.tenant_key)
    store.reads = 0
    opened(builder, store, ReadOptions()).close()
    by_segments, store.reads = store.reads, 0
    opened(builder, store, BY_INDEX).close()
    assert store.reads < by_segments / 2
    assert by_segments >= places


def test_made_again_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between any two objects and run again: byte for byte what one run makes."""
    builder, store = build(5)
    plain = dict(store.objects)
    write_indexes(store, builder.identity, builder.tenant_key)
    wanted = dict(store.objects)
    count = len(index_names(store))
    assert count > 5

    class Killed(BaseException):
        pass

    for steps in range(2 * count):
        again = MemoryStore(plain)
        left = [steps]

        def reach(name: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        monkeypatch.setattr(indexing, "failpoint", reach)
        with pytest.raises(Killed):
            write_indexes(again, builder.identity, builder.tenant_key)
        monkeypatch.setattr(indexing, "failpoint", lambda name: None)
        written = write_indexes(again, builder.identity, builder.tenant_key)
        assert again.objects == wanted, steps
        assert len(written.made) == count - (steps + 1) // 2
    assert write_indexes(store, builder.identity, builder.tenant_key).made == []


def test_no_object_ends_inside_a_sync() -> None:
    for seed in range(1, 5):
        builder, store = build(seed)
        write_indexes(store, builder.identity, builder.tenant_key)
        for name in index_names(store):
            assert parse_index(store.objects[name]).head.newest.state == 1, name


def test_damaged_objects_are_passed_over() -> None:
    """I10: an index object that is damaged, exchanged or foreign never changes what is restored."""
    builder, store = build(6)
    write_indexes(store, builder.identity, builder.tenant_key)
    whole = dict(store.objects)
    names = index_names(store)
    wanted = [moment for moment in moments(builder) if moment.may_be_chosen]
    rng = random.Random(1)
    for number in range(60):
        name = rng.choice(names)
        data = bytearray(whole[name])
        if number % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            data = bytearray(whole[rng.choice(names)])
        store.objects = {**whole, name: bytes(data)}
        moment: Moment = rng.choice(wanted)
        assert at(builder, store, moment.selector) == moment.images
    for name in names:
        store.objects = {n: d for n, d in whole.items() if n != name}
        moment = rng.choice(wanted)
        assert at(builder, store, moment.selector) == moment.images


def test_an_object_of_another_history_is_not_used() -> None:
    """A bucket that was rolled back: the chain decides, not what was made of another."""
    builder, store = build(1)
    write_indexes(store, builder.identity, builder.tenant_key)
    last = max(name for name in index_names(store) if "/index/1/" in name)
    end = parse_index(store.objects[last]).head.last_place
    cut = {
        name: data
        for name, data in store.objects.items()
        if "/chain/" not in name or int(name[-16:], 16) < end
    }
    short = MemoryStore(cut)
    with opened(builder, short, BY_INDEX) as journal:
        assert journal.newest is not None
        assert journal.newest.place == end - 1


def test_data_behind_an_index_object_is_still_checked() -> None:
    builder, store = build(2)
    write_indexes(store, builder.identity, builder.tenant_key)
    with opened(builder, store, BY_INDEX) as journal:
        number = next(
            n for n in range(journal.frames)
            if journal.frame(n).payload_sealed and not journal.is_open(journal.frame(n).first_row)
        )  # fmt: skip
        frame = journal.frame(number)
        name = chain_name(builder.identity, frame.place)
        end = frame.payload_offset + frame.payload_sealed
        sealed = store.objects[name][frame.payload_offset : end]
        assert journal.open_payload(frame, sealed)
        with pytest.raises(PayloadDamaged):
            journal.open_payload(frame, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with opened(builder, store, BY_INDEX) as journal:
        del store.objects[name]
        with pytest.raises(PayloadDamaged):
            journal.open_payload(journal.frame(number), sealed)


def test_a_cell_is_what_the_whole_map_says() -> None:
    """Ranges looked up one by one, in any order, from cells made when asked for."""
    builder, store = build(6)
    write_indexes(store, builder.identity, builder.tenant_key)
    rng = random.Random(3)
    with opened(builder, store, BY_INDEX) as journal:
        assert journal.blocks
        point = resolve(journal, "latest-write")
        live = LiveMap(journal, point)
        with closing(live), closing(get_map(journal, point)) as whole:
            for _ in range(300):
                disk = rng.choice(live.disks)
                offset = rng.randrange(disk.size)
                length = rng.randrange(1, disk.size - offset + 1)
                cells = joined(live.find(disk, offset, length).tolist())
                assert cells == joined(whole.find(whole.disk(disk.name), offset, length).tolist())


def joined(pieces: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Pieces with those that a cell's edge cut in two made whole."""
    found: list[tuple[int, int, int, int]] = []
    for start, length, frame, at in pieces:
        if found:
            before, size, number, first = found[-1]
            if (before + size, number, first + size) == (start, frame, at):
                found[-1] = (before, size + length, number, first)
                continue
        found.append((start, length, frame, at))
    return found


def test_only_the_parts_that_are_needed_are_read() -> None:
    builder, store = build(2)
    write_indexes(store, builder.identity, builder.tenant_key)
    with opened(builder, store, BY_INDEX) as journal:
        opened_sections = sum(len(kept) for b in journal.blocks for kept in b._kept.values())
        assert opened_sections == 0
        live = LiveMap(journal, resolve(journal, "latest-write"))
        with closing(live):
            live.find(live.disks[0], 0, 512)
            some = [len(b._kept[indexfile.Kind.ENTRIES]) for b in journal.blocks]
            assert sum(some) < sum(len(b.sections) for b in journal.blocks) / 2


def test_a_section_that_is_damaged_later_never_changes_a_byte() -> None:
    """I10: the objects below, and the segments, are read instead, while a moment is being read."""
    builder, store = build(5)
    write_indexes(store, builder.identity, builder.tenant_key)
    whole = dict(store.objects)
    wanted = at(builder, store, "latest-write")
    rng = random.Random(9)
    for number in range(12):
        store.objects = dict(whole)
        journal, point = open_at(store, builder.identity, builder.tenant_key, "latest-write")
        with journal:
            for name in index_names(store):
                if number % 3 == 2:
                    del store.objects[name]
                    continue
                data = bytearray(whole[name])
                for _ in range(len(data) // 100):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                store.objects[name] = bytes(data) if number % 3 else bytes(data[:-200])
            assert Images(journal).of(point) == wanted
            assert any(block._instead is not None for block in journal.blocks)
            assert list_points(journal)


def test_a_lost_key_object_is_in_every_index_object() -> None:
    builder, store = build(3)
    write_indexes(store, builder.identity, builder.tenant_key)
    wanted = at(builder, store, "latest-write")
    del store.objects[key_name(builder.identity, builder.generations[0])]
    assert at(builder, store, "latest-write") == wanted


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("byte", [0xD2, 0x00, ord("x")])
def test_a_damaged_key_object_is_never_copied(byte: int) -> None:
    """Damaged after it was opened, and also where what is left is no text at all."""
    builder, store = build(3)
    generation = builder.generations[0]
    name = key_name(builder.identity, generation)
    whole = store.objects[name]
    keys = KeyRing(store, builder.identity, builder.tenant_key)
    assert keys.key_copy(generation).encode() == whole
    keys.data_key(generation)
    for place in range(10, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] = byte
        if bytes(damaged) != whole:
            store.objects[name] = bytes(damaged)
            with pytest.raises(HoldfastError):
                keys.key_copy(generation)


def test_disks_that_leave_and_come_back() -> None:
    store = MemoryStore()
    builder = JournalBuilder(store, rng=random.Random(8))
    builder.generation({"root": 8192, "data": 4096})
    builder.end()
    for turn in range(6):
        builder.write(1, 0, bytes([turn + 1]) * 1024)
        builder.segment()
        builder.record(Event(DETACH, body={"disk": 1, "name": "data"}))
        builder.segment()
        body = {"disk": 1, "name": "data", "size": 4096}
        builder.record(Event(DISK, body=body))
        builder.write(1, 512, bytes([turn + 100]) * 512)
        builder.write(0, 512 * turn, bytes([turn + 50]) * 512)
        builder.segment()
    write_indexes(store, builder.identity, builder.tenant_key)
    assert len(index_names(store)) >= 4
    assert list(wrong(builder, store)) == []
    assert {BEGIN, END} <= {recorded.event.op for recorded in builder.log}


def test_what_was_written_is_what_is_read() -> None:
    """The codec: every part comes back, and sealing again gives the same bytes."""
    builder, store = build(4)
    write_indexes(store, builder.identity, builder.tenant_key)
    with opened(builder, store, ReadOptions()) as journal:
        assert verify(journal).problems == []
        for name in index_names(store):
            sealed = parse_index(store.objects[name])
            key = journal.keys.data_key(sealed.head.newest.generation)
            assert sealed_again(store.objects[name], builder.identity, key) == store.objects[name]


def sealed_again(data: bytes, identity: Identity, key: bytes) -> bytes:
    sealed = parse_index(data)
    index = sealed.open(identity, key)
    again = IndexBuilder(sealed.head.level, sealed.head.number, key)
    for number, section in enumerate(index.summary.sections):
        again.add(section, index.open(number, lambda at, length: data[at : at + length]))
    return again.finish(sealed.head, index.summary, identity)


@pytest.mark.invariant("I16")
def test_each_object_is_sealed_with_a_key_of_its_own() -> None:
    """The nonce is always zero, so no two contents may share a salt."""
    builder, store = build(4)
    write_indexes(store, builder.identity, builder.tenant_key)
    salts = [data[104:136] for name, data in store.objects.items() if "/index/" in name]
    assert len(salts) == len(set(salts)) == len(index_names(store)) > 5
    assert all(any(salt) for salt in salts)
