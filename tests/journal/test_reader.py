"""What a host could seal and should not have: each a named damage, and what lies before it stays
usable.

A host is only half trusted: its frames are authentic, its bodies may be anything.
"""

from __future__ import annotations

import errno
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from host_agent.wire import seal
from host_agent.wire.errors import HoldfastError
from host_agent.wire.frame import Marker
from host_agent.wire.keys import open_with_tenant
from host_agent.wire.names import Identity, chain_name, key_name
from host_agent.wire.seal import FrameSealer
from tests.model.builder import JournalBuilder
from tests.model.model import BEGIN, DETACH, DISK, END, MARK, WRITE, ZERO, Event, Model
from tests.model.store import MemoryStore
from tests.restore.replay import build
from workers.journal import chain, reader, spool
from workers.journal.catalogue import choose_stream, list_streams
from workers.journal.chain import read_tail
from workers.journal.errors import (
    AmbiguousStream,
    JournalDamaged,
    KeyObjectLost,
    NoSuchStream,
    SegmentLost,
    SpoolFull,
)
from workers.journal.journal import Journal
from workers.journal.points import resolve
from workers.journal.reader import ReadOptions, open_journal
from workers.journal.runs import ENTRY_COLUMNS, FRAME_COLUMNS, ROW_COLUMNS
from workers.journal.spool import ColumnSpool, Runs
from workers.journal.verify import verify
from workers.storage.errors import StoreUnavailable

IDENTITY = Identity("acme", "web", "host1")


def good_start() -> JournalBuilder:
    builder = JournalBuilder(MemoryStore(), rng=random.Random(2))
    builder.generation({"root": 8192})
    builder.end()
    builder.write(0, 0, b"g" * 512)
    builder.mark(kind="tagged", tag="good")
    builder.segment()
    return builder


class Counter(Model):
    """A model that only counts."""

    def apply(self, event: Event) -> int:
        self.seq += 1
        return self.seq


def raw(builder: JournalBuilder, event: Event) -> None:
    """A record that the model is not asked about."""
    kept = builder.model
    builder.model = Counter()
    builder.model.seq = kept.seq
    builder.record(event)
    kept.seq, builder.model = builder.model.seq, kept


def begin_body(builder: JournalBuilder, **changes: Any) -> dict[str, Any]:
    body = {
        "cause": "forced",
        "generation": builder.generations[-1].hex(),
        "predecessor": None,
        "last_good": 0,
        "disks": [{"disk": 0, "name": "root", "size": 8192}],
    }
    return {**body, **changes}


def disk(**changes: Any) -> list[dict[str, Any]]:
    return [{"disk": 0, "name": "root", "size": 8192, **changes}]


BAD: dict[str, Callable[[JournalBuilder], Event]] = {
    "BEGIN of another generation": lambda b: Event(BEGIN, body=begin_body(b, generation="00" * 16)),
    "BEGIN without disks": lambda b: Event(BEGIN, body={"cause": "forced"}),
    "a name that leaves the folder": lambda b: Event(
        BEGIN, body=begin_body(b, disks=disk(name="../../evil"))
    ),
    "a name with a slash": lambda b: Event(DISK, body=disk(disk=1, name="a/b")[0]),
    "an empty name": lambda b: Event(DISK, body=disk(disk=1, name="")[0]),
    "a disk of no size that exists": lambda b: Event(DISK, body=disk(size=-512)[0]),
    "a disk that is too large": lambda b: Event(DISK, body=disk(size=1 << 50)[0]),
    "a disk that is not whole sectors": lambda b: Event(DISK, body=disk(size=1000)[0]),
    "a number that no disk has": lambda b: Event(DISK, body=disk(disk=70_000, name="x")[0]),
    "two disks of one name": lambda b: Event(
        BEGIN, body=begin_body(b, disks=disk() + disk(disk=1))
    ),
    "END without BEGIN": lambda b: Event(END, body={"bytes": 0}),
    "END with other fields": lambda b: Event(END, body={"unreadable": "everything"}),
    "DETACH of no disk": lambda b: Event(DETACH, body={"disk": 7, "name": "x"}),
    "a write to no disk": lambda b: Event(WRITE, 3, 0, 512, b"x" * 512),
    "a zero to no disk": lambda b: Event(ZERO, 3, 0, 512),
    "a body that is no object": lambda b: Event(DISK, body=[1, 2, 3]),  # type: ignore[arg-type]
}


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_named_and_nothing_beyond_them_is_served(name: str) -> None:
    builder = good_start()
    raw(builder, BAD[name](builder))
    builder.segment()
    with open_journal(builder.store, IDENTITY, builder.tenant_key) as journal:
        assert isinstance(journal.damage, JournalDamaged)
        assert journal.damage.place == 3
        assert resolve(journal, "tag:good").seq == 4
        with pytest.raises(JournalDamaged):
            resolve(journal, "latest-write")


def with_markers(builder: JournalBuilder, change: Callable[[list[Marker]], None]) -> None:
    builder.write(0, 512, b"x" * 512)
    builder.mark(kind="tagged", tag="later")
    now = builder.now
    change(builder._pending.markers)
    # A header whose marker lies outside its times is refused before it is sealed.
    builder._pending.rows[0] = (builder._pending.rows[0][0], now, *builder._pending.rows[0][2:])
    builder.segment()


def clear(markers: list[Marker]) -> None:
    markers.clear()


def add_one_before(markers: list[Marker]) -> None:
    markers.insert(0, replace(markers[0], checkpoint=bytes(16), seq=markers[0].seq - 1, kind=1))


def add_a_tagged_one_before(markers: list[Marker]) -> None:
    markers.insert(0, replace(markers[0], checkpoint=bytes(16), seq=markers[0].seq - 1))


def name_another(markers: list[Marker]) -> None:
    markers[0] = replace(markers[0], checkpoint=bytes(16))


def call_it_a_commit(markers: list[Marker]) -> None:
    markers[0] = replace(markers[0], scope=3)


@pytest.mark.invariant("I10")
@pytest.mark.parametrize(
    "change", [clear, add_one_before, add_a_tagged_one_before, name_another, call_it_a_commit]
)
def test_markers_that_contradict_their_records_are_named(
    change: Callable[[list[Marker]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = good_start()
    with monkeypatch.context() as sealing:
        # Our own sealer refuses such a frame; a hostile one would not.
        sealing.setattr(seal, "_check_contents", lambda *_: None)
        with_markers(builder, change)
    with open_journal(builder.store, IDENTITY, builder.tenant_key) as journal:
        assert isinstance(journal.damage, JournalDamaged)
        assert resolve(journal, "tag:good").seq == 4


class FixedName(random.Random):
    """Names the next generation as told."""

    name = b""

    def randbytes(self, n: int) -> bytes:
        return self.name if n == 16 else super().randbytes(n)


@pytest.mark.invariant("I10")
def test_a_generation_that_comes_back_is_named() -> None:
    builder = good_start()
    assert isinstance(builder.store, MemoryStore)
    first = builder.generations[0]
    key_object = builder.store.objects[key_name(IDENTITY, first)]
    data_key = open_with_tenant(key_object, builder.tenant_key, IDENTITY, first)
    builder.generation({"root": 8192}, goes_on=True)
    builder.end()
    builder.segment()
    builder.rng = FixedName()
    builder.rng.name = first
    builder.generation({"root": 8192}, goes_on=True)
    builder._sealer = FrameSealer(data_key, IDENTITY, first, bytes(32))
    builder.end()
    builder.segment()
    with open_journal(builder.store, IDENTITY, builder.tenant_key) as journal:
        assert isinstance(journal.damage, JournalDamaged)
        assert "comes back" in journal.damage.message
        assert resolve(journal, "tag:good").seq == 4


# -- what the store does


def test_an_empty_chain_is_no_journal() -> None:
    with pytest.raises(NoSuchStream):
        open_journal(MemoryStore(), IDENTITY, good_start().tenant_key)


@pytest.mark.invariant("I10")
def test_a_chain_whose_first_segment_is_lost_is_named() -> None:
    builder = good_start()
    assert isinstance(builder.store, MemoryStore)
    del builder.store.objects[chain_name(IDENTITY, 1)]
    with pytest.raises(SegmentLost):
        open_journal(builder.store, IDENTITY, builder.tenant_key)


def test_a_lost_data_key_is_named() -> None:
    builder = good_start()
    assert isinstance(builder.store, MemoryStore)
    del builder.store.objects[key_name(IDENTITY, builder.generations[0])]
    with pytest.raises(KeyObjectLost) as raised:
        open_journal(builder.store, IDENTITY, builder.tenant_key)
    assert raised.value.hint


def test_a_lost_data_key_of_a_later_generation_leaves_the_earlier() -> None:
    builder = good_start()
    builder.generation({"root": 8192}, goes_on=True)
    builder.end()
    builder.segment()
    assert isinstance(builder.store, MemoryStore)
    del builder.store.objects[key_name(IDENTITY, builder.generations[1])]
    with open_journal(builder.store, IDENTITY, builder.tenant_key) as journal:
        assert isinstance(journal.damage, KeyObjectLost)
        assert resolve(journal, "tag:good").seq == 4


def test_a_store_that_is_away_raises_and_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = good_start()
    assert isinstance(builder.store, MemoryStore)
    tail = builder.store.get_tail

    def get_tail(name: str, length: int) -> bytes:
        if name == chain_name(IDENTITY, 2):
            raise StoreUnavailable("The store does not answer.")
        return tail(name, length)

    monkeypatch.setattr(builder.store, "get_tail", get_tail)
    with pytest.raises(StoreUnavailable):
        open_journal(builder.store, IDENTITY, builder.tenant_key)


def test_a_segment_that_appears_while_we_read_is_not_a_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The writer creates places 4 and 5 between our asking for 4 and our listing."""
    builder = good_start()
    assert isinstance(builder.store, MemoryStore)
    for _ in range(2):
        builder.write(0, 512, b"n" * 512)
        builder.segment()
    objects = builder.store.objects
    late = {name: objects.pop(name) for name in (chain_name(IDENTITY, 3), chain_name(IDENTITY, 4))}
    listing = builder.store.list

    def list_after(folder: str, start_after: str = "", limit: int | None = None) -> Any:
        objects.update(late)
        return listing(folder, start_after, limit)

    monkeypatch.setattr(builder.store, "list", list_after)
    with open_journal(builder.store, IDENTITY, builder.tenant_key) as journal:
        assert journal.damage is None
        assert journal.segments == 4


def test_a_tail_larger_than_the_first_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "TAIL_BYTES_GUESS", 400)
    builder, store = build(90)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        assert journal.damage is None
        assert journal.rows == len(builder.log)


def test_progress_hears_every_place() -> None:
    builder, store = build(90)
    heard: list[int] = []
    options = ReadOptions(progress=heard.append)
    with open_journal(store, builder.identity, builder.tenant_key, options) as journal:
        assert heard == list(range(1, journal.segments + 1))


def test_a_deep_check_counts_everything_and_finds_each_flip() -> None:
    builder, store = build(91)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        checked = verify(journal)
        assert (checked.segments, checked.frames) == (journal.segments, journal.frames)
        sizes = [len(data) for name, data in store.objects.items() if "/chain/" in name]
        assert checked.bytes == sum(sizes)
        assert not checked.problems
        rng = random.Random(4)
        for name in [n for n in store.objects if "/chain/" in n]:
            kept = store.objects[name]
            for _ in range(8):
                data = bytearray(kept)
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                store.objects[name] = bytes(data)
                assert verify(journal).problems
            store.objects[name] = kept
        assert not verify(journal).problems


# -- which streams there are


def test_streams_are_found_among_other_things() -> None:
    store = MemoryStore()
    for group, host in (("web", "host2"), ("web", "host1"), ("db", "host1")):
        JournalBuilder(store, Identity("acme", group, host), good_start().tenant_key)
    builder = JournalBuilder(store, Identity("globex", "web", "host1"))
    builder.generation({"root": 512})
    builder.state_asof(1)
    for name in ("acme/asof/0000000000000001", "acme/_probe/x", "acme/Web/host/chain/1", "acme/x"):
        store.put_if_absent(name, b"")
    names = [f"{s.group}/{s.host}" for s in list_streams(store, "acme")]
    assert names == ["db/host1", "web/host1", "web/host2"]
    assert [s.host for s in list_streams(store, "acme", "web")] == ["host1", "host2"]
    assert list_streams(store, "nobody") == []
    assert choose_stream(store, "acme", "db", None).host == "host1"
    assert choose_stream(store, "acme", "any", "thing") == Identity("acme", "any", "thing")
    with pytest.raises(AmbiguousStream, match="web/host1, web/host2"):
        choose_stream(store, "acme", "web", None)
    with pytest.raises(AmbiguousStream) as raised:
        choose_stream(store, "acme", None, None)
    assert "--group" in raised.value.hint
    with pytest.raises(NoSuchStream):
        choose_stream(store, "acme", "mail", None)


# -- columns on disk


def test_columns_come_back_as_they_went_in(tmp_path: Path) -> None:
    columns = ColumnSpool({"a": "<u8", "b": "u1"}, tmp_path)
    assert len(columns.column("a")) == 0
    for start in range(0, 1000, 100):
        part = np.arange(start, start + 100)
        columns.append({"a": part, "b": part % 251})
        assert columns.column("a").tolist() == list(range(start + 100))
    assert columns.column("b").tolist() == [n % 251 for n in range(1000)]
    assert list(tmp_path.iterdir()) == []
    columns.close()


def test_buckets_keep_the_order_of_arrival() -> None:
    rng = np.random.default_rng(1)
    runs = Runs({"n": "<u8"}, 7)
    expected: list[list[int]] = [[] for _ in range(7)]
    number = 0
    for _ in range(5):
        bucket = rng.integers(0, 7, 40)
        for at in bucket.tolist():
            expected[at].append(number)
            number += 1
        runs.append(bucket, {"n": np.arange(number - 40, number)})
    assert [runs.bucket(b)["n"].tolist() for b in range(7)] == expected
    runs.close()


class Full:
    """A file on a full file system."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self._file.close()


def test_no_room_for_columns_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.TemporaryFile
    monkeypatch.setattr(spool, "MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **words: Full(real("w+b", **words)))
    builder, store = build(90)
    with pytest.raises(SpoolFull) as raised:
        open_journal(store, builder.identity, builder.tenant_key)
    assert raised.value.retryable
    assert "TMPDIR" in raised.value.hint


def test_a_folder_for_columns_that_is_missing_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MEMORY_BYTES", 0)
    with pytest.raises(HoldfastError):
        ColumnSpool({"a": "<u8"}, tmp_path / "missing").append({"a": np.zeros(1)})


def test_a_mark_inside_a_sync_is_no_checkpoint() -> None:
    builder = good_start()
    builder.begin({"root": 8192})
    inside = builder.mark()
    builder.end()
    builder.segment()
    assert MARK in {recorded.event.op for recorded in builder.log}
    with open_journal(builder.store, IDENTITY, builder.tenant_key) as journal:
        assert inside not in {c.id for c in journal.timeline.checkpoints()}


def _state(journal: Journal) -> tuple[Any, ...]:
    """All that a journal took, and where it ends."""
    columns = [journal.column(name).tobytes() for name in (*ROW_COLUMNS, *ENTRY_COLUMNS)]
    columns += [journal.frame_column(name).tobytes() for name in FRAME_COLUMNS]
    damage = journal.damage and journal.damage.as_dict()
    return journal.newest, journal.segments, journal.link, journal.timeline.rows, columns, damage


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("wrong", ["none", "changed", "lost", "key"])
def test_segments_opened_together_are_what_each_is_alone(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the damage lies among them: all before it is taken, and it has the same name."""
    builder, store = build(33)
    names = sorted(name for name in store.objects if "/chain/" in name)
    if wrong == "key":
        names = sorted(name for name in store.objects if "/keys/" in name)
    for name in names if wrong != "none" else names[:1]:
        good = store.objects[name]
        if wrong == "changed":
            tail = read_tail(store, builder.identity, int(name.rpartition("/")[2], 16))[
                0
            ].tail_length
            middle = len(good) - tail // 2 - 160
            store.objects[name] = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        elif wrong != "none":
            del store.objects[name]
        found = []
        for together in (1, 3, 64):
            monkeypatch.setattr(reader, "_TOGETHER_SEGMENTS", together)
            try:
                with open_journal(store, builder.identity, builder.tenant_key) as journal:
                    found.append(_state(journal))
            except HoldfastError as error:
                found.append((type(error), error.message))
        assert found[0] == found[1] == found[2]
        store.objects[name] = good
