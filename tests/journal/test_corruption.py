"""I10: whatever happens to a stored object, a restore gives a named error or the right bytes.

A small journal with two generations is built, then damaged in one way at a time: bits flipped,
objects cut, lost, exchanged, replaced by older or foreign ones, and whole chains forged by a store
that can compute every hash but holds no key. Every moment that is still given must equal the
model's image of the position that the answer names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from host_agent.wire.errors import HoldfastError
from host_agent.wire.hashing import RecordHash
from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity, chain_name, key_name
from tests.journal.forging import RawFrame, put_together, take_apart
from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from tests.model.workload import Shape, Workload
from tests.restore.images import Images
from tests.restore.replay import moments
from workers.journal import chain
from workers.journal import journal as journal_module
from workers.journal.errors import JournalCut, SegmentLost
from workers.journal.points import resolve
from workers.journal.reader import Journal, open_journal

pytestmark = pytest.mark.invariant("I10")

SHAPE = Shape(
    {"root": 16}, operations=14, generation_chance=0.0, segment_chance=0.2, frame_chance=0.5
)


class Subject:
    """A journal, what each of its moments holds, and a restore from any set of objects."""

    def __init__(self, seed: int = 5, *, stated: bool = True) -> None:
        rng = random.Random(seed)
        store = MemoryStore()
        self.builder = JournalBuilder(store, rng=rng)
        workload = Workload(self.builder, SHAPE, rng)
        workload.run()
        self.builder.mark(kind="tagged", tag="good")
        self.builder.segment()
        self.builder.claim()
        workload._new_generation()
        workload._request()
        self.builder.segment()
        if stated:
            self.builder.state_asof(1)
        self.objects = store.objects
        self.identity = self.builder.identity
        self.images = {
            (moment.recorded.generation, moment.recorded.seq): moment.images
            for moment in moments(self.builder)
            if moment.may_be_chosen
        }
        oldest = self.builder.generations[0].hex()
        first = min(seq for generation, seq in self.images if generation == 0)
        self.selectors = ["latest-write", "latest", "tag:good", f"seq:{oldest}/{first}"]

    def restore(self, objects: dict[str, bytes]) -> list[str]:
        """Restore what `objects` holds: error codes or "right"; AssertionError if anything is
        wrong."""
        store = MemoryStore(objects)
        try:
            journal = open_journal(store, self.identity, self.builder.tenant_key)
        except HoldfastError as error:
            return [error.code]
        with journal:
            return [self._one(journal, selector) for selector in self.selectors]

    def _one(self, journal: Journal, selector: str) -> str:
        try:
            point = resolve(journal, selector)
            found = Images(journal).of(point)
        except HoldfastError as error:
            return error.code if error.message else "unnamed"
        generation = self.builder.generations.index(bytes.fromhex(point.generation_name))
        assert found == self.images[generation, point.seq], selector
        return "right"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


def changed(subject: Subject, name: str, data: bytes | None) -> dict[str, bytes]:
    objects = {other: value for other, value in subject.objects.items() if other != name}
    return objects if data is None else {**objects, name: data}


def test_the_whole_journal_is_right(subject: Subject) -> None:
    assert subject.restore(subject.objects) == ["right"] * len(subject.selectors)
    kinds = {name.split("/")[-2] for name in subject.objects}
    assert kinds == {"chain", "keys", "asof"}


@pytest.mark.parametrize(
    ("seed", "flips"),
    [(1, 700), pytest.param(2, 3000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
    ids=["some", "many"],
)
def test_every_part_of_every_object_may_have_a_flipped_bit(
    subject: Subject, seed: int, flips: int
) -> None:
    rng = random.Random(seed)
    names = sorted(subject.objects)
    found: set[str] = set()
    sizes = [len(subject.objects[name]) for name in names]
    for _ in range(flips):
        name = rng.choices(names, sizes)[0]
        data = bytearray(subject.objects[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        found.update(subject.restore(changed(subject, name, bytes(data))))
    assert {"right", "journal_damaged", "payload_damaged"} <= found
    assert not found & {"unnamed", "internal"}


def test_every_byte_of_every_trailer_is_held_by_something(subject: Subject) -> None:
    for place in (1, 2, len(take_apart(subject.objects, subject.identity))):
        name = chain_name(subject.identity, place)
        for at in range(1, 321):
            data = bytearray(subject.objects[name])
            data[-at] ^= 0x10
            answers = subject.restore(changed(subject, name, bytes(data)))
            assert answers != ["right"] * len(subject.selectors)


def cuts(size: int) -> Iterator[int]:
    yield from {0, 1, 15, 16, 17, 319, 320, 321, size // 3, size // 2, size - 1} - {size}


def test_objects_cut_short_or_grown(subject: Subject) -> None:
    for name, data in subject.objects.items():
        for length in cuts(len(data)):
            subject.restore(changed(subject, name, data[:length]))
            subject.restore(changed(subject, name, data[-length:] if length else b""))
        for grown in (data + b"\0", b"\0" + data, data + data):
            subject.restore(changed(subject, name, grown))


def test_lost_objects(subject: Subject) -> None:
    for name in subject.objects:
        answers = subject.restore(changed(subject, name, None))
        if "/asof/" not in name:
            assert answers != ["right"] * len(subject.selectors), name


def test_a_segment_lost_in_the_middle_is_named_and_nothing_beyond_it_is_served(
    subject: Subject,
) -> None:
    lost = take_apart(subject.objects, subject.identity)[-2].info.place
    store = MemoryStore(changed(subject, chain_name(subject.identity, lost), None))
    with open_journal(store, subject.identity, subject.builder.tenant_key) as journal:
        assert isinstance(journal.damage, SegmentLost)
        assert journal.damage.place == lost
        for selector in ("latest", "latest-write", "time:2999-01-01T00:00:00Z", "tag:later"):
            with pytest.raises(SegmentLost):
                resolve(journal, selector)
        assert resolve(journal, "tag:good").checkpoint is not None


def test_a_lost_end_is_named_because_it_was_stated(subject: Subject) -> None:
    last = take_apart(subject.objects, subject.identity)[-1].info.place
    objects = changed(subject, chain_name(subject.identity, last), None)
    with open_journal(
        MemoryStore(objects), subject.identity, subject.builder.tenant_key
    ) as journal:
        assert isinstance(journal.damage, JournalCut)
        with pytest.raises(JournalCut):
            resolve(journal, "latest-write")


def test_exchanged_objects(subject: Subject) -> None:
    names = sorted(subject.objects)
    for first in names:
        for second in names:
            if first != second:
                objects = dict(subject.objects)
                objects[first] = subject.objects[second]
                subject.restore(objects)


def test_objects_of_another_history_of_the_same_stream(subject: Subject) -> None:
    """The same names, keys and tenant, but other bytes: a bucket that was rolled back, in part."""
    other = JournalBuilder(
        MemoryStore(), subject.identity, subject.builder.tenant_key, random.Random(77)
    )
    Workload(other, SHAPE, random.Random(78)).run()
    assert isinstance(other.store, MemoryStore)
    for name, data in other.store.objects.items():
        if name in subject.objects:
            answers = subject.restore(changed(subject, name, data))
            assert answers != ["right"] * len(subject.selectors), name


# -- a store that computes every hash anew, but holds no key


def forged(subject: Subject, frames: dict[tuple[int, int], RawFrame]) -> dict[str, bytes]:
    """The journal with some frames, by (segment, frame), replaced and the chain rebuilt around
    them."""
    segments = take_apart(subject.objects, subject.identity)
    for (segment, frame), raw in frames.items():
        segments[segment].frames[frame] = raw
    kept = {n: d for n, d in subject.objects.items() if "/chain/" not in n}
    return {**kept, **put_together(segments, subject.identity)}


def test_rebuilding_changes_nothing_by_itself(subject: Subject) -> None:
    assert subject.restore(forged(subject, {})) == ["right"] * len(subject.selectors)


def test_forged_frames(subject: Subject) -> None:
    segments = take_apart(subject.objects, subject.identity)
    places = [(s, f) for s, seg in enumerate(segments) for f in range(len(seg.frames))]
    frame = {place: segments[place[0]].frames[place[1]] for place in places}
    noticed = 0
    for one in places:
        for two in places:
            if one == two:
                continue
            for part in ("index", "payload"):
                mixed = replace(frame[one], **{part: getattr(frame[two], part)})
                if len(getattr(mixed, part)) == len(getattr(frame[one], part)):
                    answers = subject.restore(forged(subject, {one: mixed}))
                    noticed += answers != ["right"] * len(subject.selectors)
    for one in places:
        for part in ("index", "payload"):
            data = bytearray(getattr(frame[one], part))
            if data:
                data[len(data) // 2] ^= 1
                mixed = replace(frame[one], **{part: bytes(data)})
                answers = subject.restore(forged(subject, {one: mixed}))
                noticed += answers != ["right"] * len(subject.selectors)
    assert noticed > len(places)


def test_a_frame_sealed_for_another_host_does_not_open(subject: Subject) -> None:
    """Same tenant, same group key, same generation name: only the identity differs."""
    segments = take_apart(subject.objects, subject.identity)
    other = Identity("acme", "web", "host2")
    objects = put_together(segments, other)
    for generation in subject.builder.generations:
        objects[key_name(other, generation)] = subject.objects[
            key_name(subject.identity, generation)
        ]
    with pytest.raises(HoldfastError) as raised:
        open_journal(MemoryStore(objects), other, subject.builder.tenant_key)
    assert raised.value.code == "wrong_key"


@pytest.mark.invariant("I9")
def test_another_tenants_key_opens_nothing(subject: Subject) -> None:
    for key in (TenantKey.make("acme"), TenantKey.make("globex")):
        with pytest.raises(HoldfastError) as raised:
            open_journal(MemoryStore(subject.objects), subject.identity, key)
        assert raised.value.code == "wrong_key"
        assert raised.value.hint


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    "identity",
    [
        Identity("globex", "web", "host1"),
        Identity("acme", "db", "host1"),
        Identity("acme", "web", "h"),
    ],
    ids=["tenant", "group", "host"],
)
def test_a_journal_moved_to_other_names_does_not_open(subject: Subject, identity: Identity) -> None:
    moved = {
        name.replace(subject.identity.prefix, identity.prefix): data
        for name, data in subject.objects.items()
    }
    with pytest.raises(HoldfastError):
        open_journal(MemoryStore(moved), identity, subject.builder.tenant_key)


# -- what reached the host's memory wrong, and negative controls


def spoiled() -> Subject:
    """A journal in which a write's data changed after the tap took its checksum, before it was
    sealed."""
    subject = Subject.__new__(Subject)
    builder = JournalBuilder(MemoryStore(), rng=random.Random(3))
    builder.generation({"root": 16 * 512})
    builder.end()
    seq = builder.write(0, 0, b"a" * 512)
    builder._pending.payload[-1] = b"b" * 512
    builder.mark(kind="tagged", tag="good")
    builder.segment()
    assert isinstance(builder.store, MemoryStore)
    subject.builder, subject.objects = builder, builder.store.objects
    subject.identity = builder.identity
    subject.images = {(0, m.recorded.seq): m.images for m in moments(builder)}
    subject.selectors = ["tag:good", "latest-write", f"seq:{seq}"]
    return subject


def test_data_that_differs_from_the_taps_checksum_is_named() -> None:
    subject = spoiled()
    assert subject.restore(subject.objects) == ["payload_damaged"] * 3


def test_the_sweep_notices_a_reader_that_checks_no_payload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = spoiled()
    monkeypatch.setattr(journal_module, "check_payload", lambda *_: None)
    with pytest.raises(AssertionError, match="tag:good"):
        subject.restore(subject.objects)


class AnyHash(bytes):
    """Equals whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


class BlindHash(RecordHash):
    """Follows nothing."""

    def update(self, records: object) -> None:
        pass

    def digest(self) -> bytes:
        return AnyHash()


def with_a_segment_left_out(subject: Subject) -> dict[str, bytes]:
    segments = take_apart(subject.objects, subject.identity)
    data = [s for s, segment in enumerate(segments) if segment.frames][1]
    dropped = [segment for s, segment in enumerate(segments) if s != data]
    kept = {n: d for n, d in subject.objects.items() if "/chain/" not in n}
    return {**kept, **put_together(dropped, subject.identity)}


def test_a_segment_left_out_of_a_forged_chain_is_noticed(subject: Subject) -> None:
    answers = subject.restore(with_a_segment_left_out(subject))
    assert "right" not in answers[:2]


def test_the_sweep_notices_a_reader_that_follows_no_chain(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "check_follows", lambda *_: None)
    monkeypatch.setattr(journal_module, "RecordHash", BlindHash)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        subject.restore(with_a_segment_left_out(subject))
