"""What every object store does for the data path, whatever it is made of."""

from __future__ import annotations

import itertools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from host_agent.wire.pieces import Pieces
from workers.storage.errors import (
    BadObjectName,
    ObjectMissing,
    ObjectTooShort,
)
from workers.storage.port import Created, ObjectStore
from workers.storage.probe import ProbeTools, probe_store

TOOLS = ProbeTools(time.time_ns, os.urandom)


def test_created_object_is_read_back(store: ObjectStore) -> None:
    data = os.urandom(100_000)
    assert store.put_if_absent("t/g/h/chain/1", data) is Created.CREATED
    assert store.get("t/g/h/chain/1") == data
    assert store.size("t/g/h/chain/1") == len(data)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_created(store: ObjectStore, kind: type) -> None:
    assert store.put_if_absent("t/one", kind(b"some bytes")) is Created.CREATED
    assert store.get("t/one") == b"some bytes"


def test_many_pieces_become_one_object(store: ObjectStore) -> None:
    data = os.urandom(300_000)
    cuts = [*range(0, 3000, 2), 100_000, 250_000, len(data)]
    parts = [memoryview(data)[begin:end] for begin, end in itertools.pairwise(cuts)]
    assert store.put_if_absent("t/pieces", Pieces([b"", *parts, b""])) is Created.CREATED
    assert store.get("t/pieces") == data
    assert store.put_if_absent("t/pieces", Pieces(parts)) is Created.EXISTS


def test_empty_object(store: ObjectStore) -> None:
    assert store.put_if_absent("t/empty", b"") is Created.CREATED
    assert store.get("t/empty") == b""
    assert store.size("t/empty") == 0
    assert store.get_tail("t/empty", 10) == b""
    assert store.get_range("t/empty", 0, 0) == b""


def test_segment_sized_object(store: ObjectStore) -> None:
    data = os.urandom(18 * 1024 * 1024 + 1)
    assert store.put_if_absent("t/large", data) is Created.CREATED
    assert store.get("t/large") == data
    assert store.get_range("t/large", 17 * 1024 * 1024, 100) == data[17 * 1024 * 1024 :][:100]


@pytest.mark.invariant("I7")
def test_second_create_is_refused_and_changes_nothing(store: ObjectStore) -> None:
    assert store.put_if_absent("t/name", b"first") is Created.CREATED
    assert store.put_if_absent("t/name", b"second") is Created.EXISTS
    assert store.put_if_absent("t/name", b"first") is Created.EXISTS
    assert store.get("t/name") == b"first"


@pytest.mark.invariant("I7")
@pytest.mark.parametrize("length", [32, 300_000])
def test_of_concurrent_creates_exactly_one_wins(store: ObjectStore, length: int) -> None:
    for attempt in range(6):
        contents = [os.urandom(length) for _ in range(16)]
        name = f"t/race/{length}-{attempt}"
        with ThreadPoolExecutor(16) as pool:
            outcomes = list(pool.map(lambda data: store.put_if_absent(name, data), contents))  # noqa: B023
        winners = [
            data
            for data, outcome in zip(contents, outcomes, strict=True)
            if outcome is Created.CREATED
        ]
        assert len(winners) == 1
        assert store.get(name) == winners[0]


@pytest.mark.parametrize("call", ["get", "size"])
def test_missing_object_is_named(store: ObjectStore, call: str) -> None:
    with pytest.raises(ObjectMissing, match="t/nothing"):
        getattr(store, call)("t/nothing")
    with pytest.raises(ObjectMissing, match="t/nothing"):
        store.get_range("t/nothing", 0, 4)
    with pytest.raises(ObjectMissing, match="t/nothing"):
        store.get_tail("t/nothing", 4)


def test_found_after_it_was_missing(store: ObjectStore) -> None:
    """A store that remembers a "not found" would hide a segment that is there."""
    for number in range(10):
        with pytest.raises(ObjectMissing):
            store.get(f"t/late/{number}")
        store.put_if_absent(f"t/late/{number}", b"x")
        assert store.get(f"t/late/{number}") == b"x"


def test_ranges_and_tails(store: ObjectStore) -> None:
    data = bytes(range(256)) * 40
    store.put_if_absent("t/data", data)
    rng = random.Random(1)
    for _ in range(20):
        start = rng.randrange(len(data))
        length = rng.randrange(len(data) - start + 1)
        assert store.get_range("t/data", start, length) == data[start : start + length]
        assert store.get_tail("t/data", max(1, length)) == data[-max(1, length) :]
    assert store.get_tail("t/data", len(data) + 1000) == data


@pytest.mark.invariant("I10")
@pytest.mark.parametrize(("start", "length"), [(0, 101), (100, 1), (99, 2), (500, 10), (101, 0)])
def test_range_beyond_the_end_is_an_error(store: ObjectStore, start: int, length: int) -> None:
    """A cut object must never look like a short answer."""
    store.put_if_absent("t/hundred", bytes(100))
    with pytest.raises(ObjectTooShort):
        store.get_range("t/hundred", start, length)


def test_listing_is_ordered_by_bytes_and_starts_after(store: ObjectStore) -> None:
    last = ["a-b", "a.b", "a0", "ab", "0000000000000001", "000000000000000a", "ff", "_x"]
    names = sorted(f"t/a/chain/{name}" for name in last)
    others = ["t/a/keys/ff", "t/a/chain2/x", "t/a/chain/deeper/x", "t/a-b/chain/x"]
    shuffled = random.Random(3).sample(names + others, len(names) + len(others))
    for number, name in enumerate(shuffled):
        store.put_if_absent(name, bytes(number))
    assert [entry.name for entry in store.list("t/a/chain/")] == names
    assert [entry.name for entry in store.list("t/none/")] == []
    assert [entry.name for entry in store.list("t/")] == []
    for index, name in enumerate(names):
        assert [entry.name for entry in store.list("t/a/chain/", name)] == names[index + 1 :]
        found = store.list("t/a/chain/", name[:-1], limit=1)
        assert [entry.name for entry in found] == [next(n for n in names if n > name[:-1])]
    assert all(entry.size == store.size(entry.name) for entry in store.list("t/a/chain/"))
    with pytest.raises(BadObjectName):
        list(store.list("t/a/chain"))


def test_folders_are_found(store: ObjectStore) -> None:
    for name in ["t/a-b/h/x", "t/a/h/x", "t/a/h/chain/x", "t/a0/x", "t/file", "t2/a/x"]:
        store.put_if_absent(name, b"x")
    assert sorted(store.folders("t/")) == ["t/a-b/", "t/a/", "t/a0/"]
    assert sorted(store.folders("t/a/")) == ["t/a/h/"]
    assert sorted(store.folders("t/a/h/")) == ["t/a/h/chain/"]
    assert sorted(store.folders("")) == ["t/", "t2/"]
    assert list(store.folders("none/")) == []


def test_listing_of_more_than_a_page(store: ObjectStore) -> None:
    names = [f"t/many/{number:04}" for number in range(1203)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put_if_absent(name, b""), names))
    assert [entry.name for entry in store.list("t/many/")] == names
    assert [entry.name for entry in store.list("t/many/", limit=1001)] == names[:1001]
    assert [entry.name for entry in store.list("t/many/", start_after="t/many/1199")] == names[
        1200:
    ]


def test_deleted_object_is_gone_and_deleting_twice_is_fine(store: ObjectStore) -> None:
    store.put_if_absent("t/old", b"x")
    store.delete("t/old")
    store.delete("t/old")
    with pytest.raises(ObjectMissing):
        store.get("t/old")
    assert list(store.list("t/")) == []


@pytest.mark.parametrize(
    "name",
    ["", "/t", "t/", "t//x", "../t", "t/../x", "t/.x", "T/x", "t/x y", "t/\n", "t/\0", "t" * 600],
)
def test_unsafe_name_is_refused(store: ObjectStore, name: str) -> None:
    with pytest.raises(BadObjectName):
        store.put_if_absent(name, b"x")
    with pytest.raises(BadObjectName):
        store.get(name)


def test_the_stores_clock_is_known(store: ObjectStore) -> None:
    store.put_if_absent("t/now", b"")
    stamp = store.answered_at()
    assert stamp is not None
    assert abs(stamp - time.time_ns()) < 5_000_000_000


def test_probe_accepts_it_and_leaves_nothing(store: ObjectStore) -> None:
    probe_store(store, "t/_probe/", TOOLS)
    probe_store(store, "t/_probe/", TOOLS)
    assert list(store.list("t/_probe/")) == []
