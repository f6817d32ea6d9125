"""A scrub without any key: whole journals pass, and nothing that is damaged does."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from host_agent.wire.names import chain_name
from host_agent.wire.segment import parse_tail
from tests.journal.forging import put_together, take_apart
from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from tests.model.workload import Workload
from tests.restore.replay import SHAPE
from workers.journal import indexfile
from workers.journal import scrub as scrubbing
from workers.journal.indexing import write_indexes
from workers.journal.scrub import Scrubbed, scrub

pytestmark = pytest.mark.invariant("I10")


@pytest.fixture(scope="module")
def built() -> tuple[JournalBuilder, dict[str, bytes]]:
    store = MemoryStore()
    rng = random.Random(11)
    builder = JournalBuilder(store, rng=rng)
    workload = Workload(builder, SHAPE, rng)
    workload.run()
    builder.claim()
    workload._new_generation()
    builder.segment()
    builder.state_asof(1)
    return builder, store.objects


Built = tuple[JournalBuilder, dict[str, bytes]]


def scrubbed(built: Built, objects: dict[str, bytes]) -> Scrubbed:
    return scrub(MemoryStore(objects), built[0].identity)


def stored(built: Built) -> list[str]:
    """All objects that hold the journal; statements are no part of it."""
    return [name for name in built[1] if "/asof/" not in name]


def test_a_whole_journal_has_no_problem(built: Built) -> None:
    heard: list[int] = []
    found = scrub(MemoryStore(built[1]), built[0].identity, heard.append)
    assert found.problems == []
    chain = [data for name, data in built[1].items() if "/chain/" in name]
    assert (found.segments, found.keys) == (len(chain), 2)
    assert found.frames > found.segments / 2
    assert sum(heard) == found.bytes == sum(map(len, chain))


def test_no_flipped_bit_stays_unseen(built: Built) -> None:
    """I10: every bit of every segment is held by its hash, those of key objects by their form."""
    rng = random.Random(12)
    names = [name for name in stored(built) if "/chain/" in name]
    sizes = [len(built[1][name]) for name in names]
    for _ in range(300):
        name = rng.choices(names, sizes)[0]
        data = bytearray(built[1][name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        assert scrubbed(built, {**built[1], name: bytes(data)}).problems, name


def test_control_without_the_hash_of_the_whole_flips_stay_unseen(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scrub that looked at the tails alone would let damaged data pass."""
    monkeypatch.setattr(scrubbing, "verify_segment", lambda data: parse_tail(data)[0])
    name = max((n for n in built[1] if "/chain/" in n), key=lambda n: len(built[1][n]))
    data = bytearray(built[1][name])
    data[20] ^= 1
    assert scrubbed(built, {**built[1], name: bytes(data)}).problems == []


def test_each_lost_object_is_named_and_the_rest_is_read(built: Built) -> None:
    for name in stored(built):
        found = scrubbed(built, {n: d for n, d in built[1].items() if n != name})
        assert found.problems, name
        code = "key_object_lost" if "/keys/" in name else {"segment_lost", "journal_cut"}
        assert found.problems[0].code in code
        whole = scrubbed(built, built[1]).segments
        assert found.segments == whole - ("/chain/" in name)


def test_exchanged_and_foreign_objects(built: Built) -> None:
    names = stored(built)
    for first, second in pairwise(names):
        assert scrubbed(built, {**built[1], first: built[1][second]}).problems
    chain = chain_name(built[0].identity, 1).rpartition("/")[0]
    assert scrubbed(built, {**built[1], f"{chain}/readme": b"?"}).problems


def test_a_chain_put_together_anew_with_a_segment_left_out(built: Built) -> None:
    """Every hash and link is right, so only positions tell that something is gone."""
    segments = take_apart(built[1], built[0].identity)
    gone = next(i for i, s in enumerate(segments) if i > 2 and s.frames)
    objects = put_together(segments[:gone] + segments[gone + 1 :], built[0].identity)
    rest = {n: d for n, d in built[1].items() if "/chain/" not in n}
    found = scrubbed(built, {**rest, **objects})
    assert [p.code for p in found.problems]


def test_several_kinds_of_damage_are_all_told(built: Built) -> None:
    identity = built[0].identity
    objects = dict(built[1])
    del objects[chain_name(identity, 3)]
    objects[chain_name(identity, 5)] = objects[chain_name(identity, 5)][:-1]
    places = {getattr(p, "place", 0) for p in scrubbed(built, objects).problems}
    assert {3, 5} <= places


def test_index_objects_are_checked_without_a_key(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexfile, "SPAN", 4)
    builder, rng = built[0], random.Random(3)
    store = MemoryStore(built[1])
    written = write_indexes(store, builder.identity, builder.tenant_key)
    assert written.made
    whole = scrub(store, builder.identity)
    assert whole.problems == []
    assert whole.indexes == len(written.made)
    for _ in range(100):
        name = rng.choice(written.made)
        data = bytearray(store.objects[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        found = scrubbed(built, {**store.objects, name: bytes(data)}).problems
        assert [problem.code for problem in found] == ["index_damaged"]
    if len(written.made) > 1:
        first, second = written.made[:2]
        found = scrubbed(built, {**store.objects, first: store.objects[second]}).problems
        assert [problem.code for problem in found] == ["index_damaged"]
