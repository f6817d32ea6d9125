"""Every selector names the right moment, or an error that names the nearest choices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.model.builder import JournalBuilder
from tests.model.model import MORE, SECTOR, TRIM, Event
from tests.model.store import MemoryStore
from workers.journal.errors import (
    AmbiguousSelector,
    BadSelector,
    BeforeHistory,
    HandedOver,
    InsideRequest,
    InsideSync,
    NoSuchCheckpoint,
    NothingToRestore,
    NotStored,
)
from workers.journal.points import Point, list_points, resolve
from workers.journal.reader import Journal, open_journal
from workers.journal.selectors import format_time

TAIL = 4
DATA = b"d" * SECTOR


class Story:
    """A journal with one of everything; positions by name."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.builder = JournalBuilder(self.store, rng=random.Random(4))
        self.seq: dict[str, int] = {}
        self.time: dict[str, int] = {}
        self.id: dict[str, str] = {}

    def name(self, name: str, seq: int) -> None:
        self.seq[name], self.time[name] = seq, self.builder.now

    def mark(self, name: str, *, tag: str | None = None, kind: str = "crash") -> None:
        self.id[name] = self.builder.mark(tag=tag, kind=kind)
        self.name(name, self.builder.model.seq)

    @contextmanager
    def opened(self) -> Iterator[Journal]:
        self.builder.segment()
        with open_journal(self.store, self.builder.identity, self.builder.tenant_key) as journal:
            assert journal.damage is None
            yield journal

    def resolve(self, text: str) -> Point:
        with self.opened() as journal:
            return resolve(journal, text)


def first_sync(story: Story) -> None:
    builder = story.builder
    builder.generation({"root": 64 * SECTOR})
    story.name("begin", 1)
    story.name("block", builder.sync(0, 0, DATA * 4, 1))
    story.name("end", builder.end())


@pytest.fixture
def story() -> Story:
    """first sync, a write, a mark, a request in pieces, a tag, a second sync, a write, another
    mark."""
    story = Story()
    builder = story.builder
    first_sync(story)
    story.name("write", builder.write(0, 0, DATA))
    builder.segment()
    story.mark("plain")
    story.name("piece", builder.write(0, 512, DATA, flags=MORE))
    builder.frame()
    story.name("piece2", builder.record(Event(TRIM, 0, 1024, 512, flags=MORE | TAIL)))
    story.name("whole", builder.write(0, 1536, DATA, flags=TAIL))
    story.mark("tagged", tag="before", kind="tagged")
    builder.segment()
    story.name("second begin", builder.begin({"root": 64 * SECTOR}))
    story.name("second block", builder.sync(0, 4096, DATA, builder.model.seq))
    story.name("second end", builder.end())
    story.name("last write", builder.write(0, 2048, DATA))
    story.mark("last")
    story.name("newest", builder.write(0, 2560, DATA))
    return story


def test_each_selector_names_its_moment(story: Story) -> None:
    ids, seq, time = story.id, story.seq, story.time
    for text, name in {
        f"checkpoint:{ids['plain']}": "plain",
        f"checkpoint:{ids['plain'][:8]}": "plain",
        ids["plain"]: "plain",
        "tag:before": "tagged",
        "before": "tagged",
        "latest": "last",
        "latest-write": "newest",
        f"seq:{seq['write']}": "write",
        str(seq["write"]): "write",
        f"seq:{story.builder.generations[0].hex()[:6]}/{seq['whole']}": "whole",
        f"time:{format_time(time['write'])}": "write",
        format_time(time["write"]): "write",
        f"time:{format_time(time['piece2'])}": "plain",
        f"time:{format_time(time['second block'])}": "tagged",
        f"time:{format_time(time['second end'])}": "second end",
        "time:2100-01-01T00:00:00Z": "newest",
    }.items():
        point = story.resolve(text)
        assert (point.seq, point.time) == (seq[name], time[name]), text
        expected = ids.get(name) if not text.startswith(("seq", "time", "20")) else None
        if text in ("latest", "before", "tag:before") or "checkpoint" in text:
            assert point.checkpoint is not None
            assert point.checkpoint.id == expected


@pytest.mark.parametrize(
    ("name", "error", "near"),
    [
        ("begin", InsideSync, ["end"]),
        ("block", InsideSync, ["end"]),
        ("second begin", InsideSync, ["tagged", "second end"]),
        ("second block", InsideSync, ["tagged", "second end"]),
        ("piece", InsideRequest, ["plain", "whole"]),
        ("piece2", InsideRequest, ["plain", "whole"]),
    ],
)
def test_positions_that_cannot_be_chosen_name_their_neighbours(
    story: Story, name: str, error: type[Exception], near: list[str]
) -> None:
    with pytest.raises(error) as raised:
        story.resolve(f"seq:{story.seq[name]}")
    hint = str(raised.value)
    assert [f"seq:{story.seq[n]}" for n in near] == [
        word.strip(".,") for word in hint.split() if word.startswith("seq:")
    ]


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("seq:0", InsideSync, "seq:"),
        ("seq:9999", NotStored, "seq:"),
        ("seq:ffff/1", BadSelector, "There are"),
        ("time:2020-01-01T00:00:00Z", BeforeHistory, "time:2026-01-01"),
        ("checkpoint:00000000", NoSuchCheckpoint, "checkpoint:"),
        ("tag:nothing", NoSuchCheckpoint, "checkpoint:"),
        ("nothing", NoSuchCheckpoint, "checkpoint:"),
        ("9999", BadSelector, "checkpoint:"),
    ],
)
def test_what_is_not_there_is_named(
    story: Story, text: str, error: type[BadSelector], hint: str
) -> None:
    with pytest.raises(error) as raised:
        story.resolve(text)
    assert hint in raised.value.hint


def test_two_checkpoints_of_one_tag_are_ambiguous(story: Story) -> None:
    story.mark("again", tag="before", kind="tagged")
    with pytest.raises(AmbiguousSelector) as raised:
        story.resolve("tag:before")
    assert story.id["again"] in raised.value.hint
    assert story.id["tagged"] in raised.value.hint


def test_a_bare_word_that_fits_twice_is_ambiguous(story: Story) -> None:
    story.mark("number", tag=str(story.seq["write"]), kind="tagged")
    with pytest.raises(AmbiguousSelector, match="tag, a sequence"):
        story.resolve(str(story.seq["write"]))


def test_an_application_checkpoint_keeps_its_kind_and_tag(story: Story) -> None:
    story.mark("app", tag="db", kind="application")
    point = story.resolve("tag:db")
    assert point.checkpoint is not None
    assert point.checkpoint.kind == "application"


def test_a_group_marker_without_its_commit_is_nothing(story: Story) -> None:
    lonely = story.builder.mark(scope="group")
    kept = story.builder.mark(scope="group")
    position = story.builder.model.seq
    story.builder.write(0, 0, DATA)
    story.builder.commit(kept, position)
    with story.opened() as journal:
        known = {checkpoint.id for checkpoint in list_points(journal)}
        assert kept in known
        assert lonely not in known
        assert resolve(journal, f"checkpoint:{kept}").seq == position


def test_a_commit_of_another_position_makes_no_checkpoint(story: Story) -> None:
    marked = story.builder.mark(scope="group")
    story.builder.commit(marked, story.builder.model.seq - 1)
    with story.opened() as journal:
        assert marked not in {checkpoint.id for checkpoint in list_points(journal)}


def test_nothing_can_be_chosen_before_the_first_sync_is_over() -> None:
    story = Story()
    story.builder.generation({"root": 64 * SECTOR})
    story.builder.sync(0, 0, DATA, 1)
    for text in ("latest", "latest-write"):
        with pytest.raises(NothingToRestore) as raised:
            story.resolve(text)
        assert raised.value.retryable
    with pytest.raises(InsideSync, match="No sequence"):
        story.resolve("seq:2")


def test_a_journal_without_checkpoints_points_to_its_newest_write() -> None:
    story = Story()
    first_sync(story)
    with pytest.raises(NoSuchCheckpoint) as raised:
        story.resolve("latest")
    assert "latest-write" in raised.value.hint
    assert story.resolve("latest-write").seq == story.seq["end"]


def test_positions_after_the_last_good_one_cannot_be_chosen() -> None:
    """BEGIN says since when the stream is not sure of its writes."""
    story = Story()
    first_sync(story)
    builder = story.builder
    good = builder.write(0, 0, DATA)
    doubtful = builder.write(0, 512, DATA)
    body = {
        "cause": "disk_error",
        "generation": builder.generations[0].hex(),
        "predecessor": None,
        "last_good": good,
        "disks": [{"disk": 0, "name": "root", "size": 64 * SECTOR}],
    }
    builder.record(Event(16, aux=good, body=body))
    builder.end()
    assert story.resolve(f"seq:{good}").seq == good
    with pytest.raises(InsideSync):
        story.resolve(f"seq:{doubtful}")


def test_an_older_generation_is_named_by_its_digits(story: Story) -> None:
    story.builder.generation({"root": 64 * SECTOR}, goes_on=True, cause="ring_lost")
    story.builder.end()
    old, new = (name.hex() for name in story.builder.generations)
    assert story.resolve(f"seq:{old[:8]}/{story.seq['write']}").generation_name == old
    assert story.resolve("seq:2").generation_name == new
    assert story.resolve("latest").generation_name == old
    assert story.resolve(f"time:{format_time(story.time['write'])}").generation_name == old


def test_ranges_that_the_source_could_not_read_go_with_the_point() -> None:
    story = Story()
    first_sync(story)
    before = story.builder.model.seq
    story.builder.begin({"root": 64 * SECTOR})
    story.builder.end(unreadable=[(0, 4096, 512)])
    assert story.resolve("latest-write").damaged_ranges == ((0, 4096, 512),)
    assert story.resolve(f"seq:{before}").damaged_ranges == ()


def test_moments_after_a_handover_are_refused() -> None:
    story = Story()
    first_sync(story)
    before = story.builder.model.seq
    story.builder.record(Event(23, body={"from": "elsewhere"}))
    story.builder.write(0, 0, DATA)
    assert story.resolve(f"seq:{before}").seq == before
    with pytest.raises(HandedOver):
        story.resolve("latest-write")


# -- what is known of the stream up to the time asked for


def quiet(story: Story, text: str) -> str:
    point = story.resolve(text)
    assert point.quiet is not None
    assert point.quiet.sentence()
    return point.quiet.state


def test_a_stream_that_went_on_tells_exactly(story: Story) -> None:
    assert quiet(story, f"time:{format_time(story.time['write'] + 1)}") == "exact"


def test_inside_a_sync_it_says_syncing(story: Story) -> None:
    assert quiet(story, f"time:{format_time(story.time['second block'])}") == "syncing"


def test_at_the_end_it_is_cut_off_unless_somebody_stated_otherwise(story: Story) -> None:
    later = format_time(story.builder.now + 1_000_000_000)
    assert quiet(story, f"time:{later}") == "cut_off"
    assert quiet(story, "latest-write") == "cut_off"


def test_an_idle_stream_is_idle_as_far_as_ingest_stated_it(story: Story) -> None:
    story.builder.segment()
    story.builder.now += 60_000_000_000
    story.builder.state_asof(3)
    assert quiet(story, f"time:{format_time(story.builder.now - 1)}") == "idle"
    assert quiet(story, f"time:{format_time(story.builder.now + 1)}") == "cut_off"
    assert quiet(story, "latest-write") == "idle"


@pytest.mark.parametrize("state", ["dirty", "syncing"])
def test_a_dirty_stream_is_syncing(story: Story, state: str) -> None:
    story.builder.segment()
    story.builder.state_asof(1, state=state)
    assert quiet(story, f"time:{format_time(story.builder.now)}") == "syncing"


def test_a_silent_stream_is_cut_off(story: Story) -> None:
    story.builder.segment()
    story.builder.state_asof(1, state="silent")
    assert quiet(story, f"time:{format_time(story.builder.now)}") == "cut_off"


def test_before_a_gap_it_is_cut_off(story: Story) -> None:
    """The next thing after it is BEGIN: since when writes were missed nobody knows."""
    assert quiet(story, f"time:{format_time(story.time['second begin'] - 1)}") == "cut_off"


def test_the_newest_statement_counts_wherever_it_is(story: Story) -> None:
    story.builder.segment()
    for number in (5, 6, 9, 17, 40):
        story.builder.state_asof(number, state="recording" if number == 40 else "dirty")
    assert quiet(story, "latest-write") == "idle"


def test_a_statement_that_cannot_be_read_says_less_and_breaks_nothing(story: Story) -> None:
    story.builder.segment()
    story.store.put_if_absent("acme/asof/0000000000000001", b"{ not json")
    assert quiet(story, "latest-write") == "cut_off"
