"""Folding changes nothing that can still be restored, and names what is gone."""

from __future__ import annotations

import random

import pytest

from host_agent.wire.names import boundary_name, key_name, layers_prefix
from tests.journal.folding import HOUR, NS, ONE_HOUR, SHAPE, Site, latest
from tests.model.model import MARK
from tests.restore.images import Images
from workers.journal import content, layering
from workers.journal.boundary import newest_boundary
from workers.journal.errors import (
    BoundaryDamaged,
    JournalMoved,
    LayerDamaged,
    NoSuchCheckpoint,
    PayloadDamaged,
)
from workers.journal.fold import Folder, FoldTools
from workers.journal.hashlist import make_hashes
from workers.journal.indexing import write_indexes
from workers.journal.paint import U64, Painted, paint
from workers.journal.pins import pin, unpin
from workers.journal.points import resolve
from workers.journal.reader import ReadOptions, open_journal
from workers.journal.retention import Policy
from workers.journal.verify import verify
from workers.restore.fetch import fetch_all

pytestmark = pytest.mark.invariant("I15")


def marks(site: Site) -> list[str]:
    """The checkpoints that could be chosen, oldest first."""
    return [
        moment.recorded.event.body["checkpoint"]
        for moment in site.known
        if moment.may_be_chosen and moment.recorded.event.op == MARK and moment.recorded.event.body
    ]


@pytest.mark.parametrize("seed", range(1, 9))
def test_every_moment_that_is_left_is_the_models(seed: int) -> None:
    site = Site.make(seed)
    whole = latest(site)
    folded = site.fold()
    assert folded.folded_places > 10
    assert folded.reason == "window"
    assert site.check() == []
    assert latest(site) == whole


@pytest.mark.parametrize("seed", [2, 5])
def test_folded_again_and_again_then_collected(seed: int) -> None:
    """Windows that shrink: layers over layers, merged or not, and after each the same bytes."""
    site = Site.make(seed)
    for hours in (5, 4, 3, 2, 1):
        site.fold(Policy(window_seconds=hours * HOUR))
        assert site.check(every=3) == []
    site.store.now += 25 * HOUR * NS
    plan = site.collect()
    assert plan.deleted > 10
    assert site.check() == []
    assert site.collect().deleted == 0
    assert site.fold().folded_places == 0


def test_control_a_fold_that_lets_the_older_write_win_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def older_wins(columns: dict[str, U64], low: U64, high: U64) -> Painted:
        start, end = columns["start"].clip(low, high), columns["end"].clip(low, high)
        painted = paint(start[::-1], end[::-1])
        return Painted(painted.start, painted.end, len(start) - 1 - painted.winner)

    site = Site.make(3)
    monkeypatch.setattr(layering, "paint_cell", older_wins)
    site.fold()
    assert site.check()


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_pinned_checkpoints_outlive_the_window(seed: int) -> None:
    site = Site.make(seed)
    rng = random.Random(seed)
    known = marks(site)
    pinned = set(rng.sample(known[: len(known) // 2], 3))
    for checkpoint in pinned:
        pin(site.store, site.builder.identity, checkpoint)
    for hours in (4, 2, 1):
        site.fold(Policy(window_seconds=hours * HOUR))
    site.store.now += 49 * HOUR * NS
    assert site.collect().deleted > 10
    assert site.check(lambda checkpoint: checkpoint in pinned) == []
    with site.opened() as journal:
        assert len(journal.timeline.layers) > 3


def test_what_is_not_pinned_any_more_is_merged_away() -> None:
    site = Site.make(1)
    identity = site.builder.identity
    checkpoint = marks(site)[2]
    pin(site.store, identity, checkpoint)
    site.fold(Policy(window_seconds=3 * HOUR))
    assert site.check(lambda c: c == checkpoint) == []
    unpin(site.store, identity, checkpoint)
    site.fold()
    with site.opened() as journal, pytest.raises(NoSuchCheckpoint):
        resolve(journal, f"checkpoint:{checkpoint}")
    assert site.check() == []


def test_by_index_objects_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that reads index objects, and index objects that are made behind layers."""
    monkeypatch.setattr("workers.journal.indexfile.SPAN", 4)
    monkeypatch.setattr("workers.journal.indexfile.LEVELS", 3)
    site = Site.make(7)
    identity, key = site.builder.identity, site.builder.tenant_key
    write_indexes(site.store, identity, key)
    first = marks(site)[1]
    pin(site.store, identity, first)
    site.fold(Policy(window_seconds=2 * HOUR))
    assert site.check(lambda c: c == first) == []
    write_indexes(site.store, identity, key)
    site.fold()
    site.store.now += 49 * HOUR * NS
    site.collect()
    write_indexes(site.store, identity, key)
    assert site.check(lambda c: c == first) == []


def test_small_parts_and_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several data objects, indexes and batches; the same content."""
    for module, name, value in (
        (content, "PART_BYTES", 8192), (content, "PIECE_BYTES", 2048),
        (content, "INDEX_ENTRIES", 5), (content, "BATCH_BYTES", 4096),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    site = Site.make(2)
    site.fold(Policy(window_seconds=2 * HOUR))
    with site.opened() as journal:
        assert journal.layers is not None
        assert len(journal.layers.clear.layers[0].parts) > 3
        assert len(journal.layers.clear.layers[0].indexes) >= 3
        assert verify(journal).problems == []
    site.fold()
    assert site.check(every=2) == []


def test_the_same_fold_makes_the_same_bytes() -> None:
    site = Site.make(4)
    twin = site.twin()
    site.fold()
    twin.fold()
    assert site.store.objects == twin.store.objects


def test_the_size_limit_shortens_history_and_leaves_the_newest() -> None:
    site = Site.make(3)
    folded = site.fold(Policy(window_seconds=720 * HOUR, size_bytes_max=1))
    assert folded.reason == "size_limit"
    boundary = newest_boundary(site.store, site.builder.identity)
    assert boundary is not None
    assert boundary.reason == "size_limit"
    assert site.check() == []
    # What is written later goes on from there.
    site.builder.write(0, 0, bytes(512))
    site.builder.segment()
    assert latest(site)["root"][:512] == bytes(512)


def test_layers_hold_every_key_object_that_they_need() -> None:
    site = Site.make(4)
    site.fold()
    wanted = latest(site)
    boundary = newest_boundary(site.store, site.builder.identity)
    assert boundary is not None
    del site.store.objects[key_name(site.builder.identity, boundary.newest.generation)]
    assert latest(site) == wanted


@pytest.mark.invariant("I10")
def test_a_damaged_layer_is_named_and_never_guessed() -> None:
    site = Site.make(2)
    site.fold()
    whole = dict(site.store.objects)
    wanted = latest(site)
    names = [n for n in whole if any(f"/{d}/" in n for d in ("layers", "parts", "boundary"))]
    rng, silent, named = random.Random(1), 0, 0
    for number in range(80):
        name = rng.choice(names)
        data = bytearray(whole[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if number % 4 == 0:
            del data[rng.randrange(len(data)) :]
        site.store.objects = {**whole, name: bytes(data)}
        try:
            silent += latest(site) != wanted
        except (LayerDamaged, BoundaryDamaged, PayloadDamaged):
            named += 1
    assert silent == 0
    assert named > 50
    for name in names:
        site.store.objects = {n: d for n, d in whole.items() if n != name}
        # Without its boundary the journal is read from its segments: nothing was collected.
        try:
            assert latest(site) == wanted
            named -= "/parts/" not in name and name != boundary_name(site.builder.identity, 1)
        except (LayerDamaged, PayloadDamaged):
            named += 1
    assert named > 50


@pytest.mark.invariant("I16")
def test_each_object_of_a_layer_has_a_key_of_its_own() -> None:
    site = Site.make(5)
    for hours in (3, 2, 1):
        site.fold(Policy(window_seconds=hours * HOUR))
    salts = [
        data[64:96]
        for name, data in site.store.objects.items()
        if "/parts/" in name or name.startswith(layers_prefix(site.builder.identity))
    ]
    assert len(salts) == len(set(salts)) >= 6


def test_the_hash_list_of_the_newest_layer_is_that_of_the_chain() -> None:
    site = Site.make(3)
    twin = site.twin()
    stream = (site.builder.identity, site.builder.tenant_key)
    tools = FoldTools(
        fetch_all,
        random.Random(1).randbytes,
        hashes=lambda journal: make_hashes(journal, fetch_all),
    )
    folded = Folder(site.store, stream, ONE_HOUR, tools).run()
    with twin.opened(ReadOptions(until=folded.place)) as journal:
        make_hashes(journal, fetch_all)
    lists = [{n: d for n, d in s.store.objects.items() if "/hashes/" in n} for s in (site, twin)]
    assert lists[0] == lists[1]
    assert len(lists[0]) >= 2


class _Moving:
    """A store in which others fold and collect as soon as a reader has begun with the chain."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.moved = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._site.store, name)

    def get_tail(self, name: str, length: int) -> bytes:
        """The first read moves the journal."""
        if not self.moved:
            self.moved += 1
            self._site.fold()
            self._site.store.now += 25 * HOUR * NS
            assert self._site.collect().deleted > 10
        return self._site.store.get_tail(name, length)


def test_a_reader_that_meets_a_deleted_object_plans_again() -> None:
    site = Site.make(2)
    wanted = latest(site)
    store = _Moving(site)
    identity, key = site.builder.identity, site.builder.tenant_key
    with open_journal(store, identity, key) as journal:  # type: ignore[arg-type]
        assert store.moved == 1
        assert journal.damage is None
        assert journal.layers is not None
        assert Images(journal).of(resolve(journal, "latest-write")) == wanted


def test_data_that_was_collected_while_it_was_read_is_named() -> None:
    site = Site.make(2)
    with site.opened() as journal:
        frames = [n for n in range(journal.frames) if journal.frame(n).payload_sealed][:5]
        site.fold()
        site.store.now += 25 * HOUR * NS
        site.collect()
        with pytest.raises(JournalMoved):
            list(fetch_all(journal, iter(frames)))


def test_nothing_is_due_without_a_window_behind() -> None:
    site = Site.make(1, SHAPE)
    assert site.fold(Policy(window_seconds=720 * HOUR)).made == []
    assert newest_boundary(site.store, site.builder.identity) is None
    assert ONE_HOUR.size_bytes_max is None
