"""Recovered disks get the right bytes: on demand at once, the rest behind, damage by name, guests'
writes left alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.model.builder import JournalBuilder
from tests.model.store import MemoryStore
from tests.restore.replay import build
from tests.restore.tap_double import Refused, TapDouble
from workers.journal.errors import PayloadDamaged
from workers.journal.points import resolve
from workers.journal.reader import Journal, open_journal
from workers.restore import provider as providing
from workers.restore.errors import TapFailed
from workers.restore.fetch import FrameCache
from workers.restore.livemap import LiveMap
from workers.restore.provider import Provider
from workers.restore.tap_client import TapChannel
from workers.storage.errors import StoreUnavailable


class Scene:
    """A journal's newest moment, its provider, and the tap that asks."""

    def __init__(self, journal: Journal, found: LiveMap, folder: Path) -> None:
        self.journal = journal
        self.found = found
        self.tap = TapDouble(folder / "g.stream", {d.name: d.size for d in found.disks})
        self.provider = Provider(journal, found, folder / "g.stream")


@contextmanager
def scene(builder: JournalBuilder, folder: Path) -> Iterator[Scene]:
    with open_journal(builder.store, builder.identity, builder.tenant_key) as journal:
        found = LiveMap(journal, resolve(journal, "latest-write"))
        made = Scene(journal, found, folder)
        try:
            yield made
        finally:
            made.provider.close()
            made.tap.close()
            found.close()


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("seed", [70, 71, 72])
def test_what_a_guest_reads_equals_the_model(seed: int, tmp_path: Path) -> None:
    builder, _ = build(seed)
    images = builder.model.images()
    rng = random.Random(seed)
    with scene(builder, tmp_path) as s:
        for _ in range(60):
            name = rng.choice(sorted(images))
            sectors = len(images[name]) // 512
            start = rng.randrange(sectors)
            count = rng.randrange(1, sectors - start + 1)
            data = s.tap.read(name, start * 512, count * 512)
            assert data == images[name][start * 512 : (start + count) * 512]


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("seed", [73, 74])
def test_everything_comes_behind(seed: int, tmp_path: Path) -> None:
    builder, store = build(seed)
    with scene(builder, tmp_path) as s:
        s.provider.fill_behind()
        assert s.provider.filled.wait(20)
        for name, image in builder.model.images().items():
            assert s.tap.missing(name) == 0
            assert s.tap.held(name, 0, len(image)) == image
        store.objects.clear()
        assert s.tap.read("root", 0, 512) == builder.model.images()["root"][:512]


def test_a_guest_is_answered_before_anything_comes_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providing, "_FIRST_SECONDS", 600.0)
    builder, _ = build(73)
    with scene(builder, tmp_path) as s:
        s.provider.fill_behind()
        assert not s.provider.filled.wait(0.5)
        assert s.tap.missing("root") == len(builder.model.images()["root"]) // 512
        s.tap.read("root", 0, 512)
        assert s.provider.filled.wait(20)


def test_without_fill_only_what_is_asked_for_comes(tmp_path: Path) -> None:
    builder, _ = build(75)
    with scene(builder, tmp_path) as s:
        s.tap.read("root", 0, 1024)
        assert s.tap.missing("root") == len(builder.model.images()["root"]) // 512 - 2
        assert not s.provider.filled.is_set()


def test_what_a_guest_wrote_stays(tmp_path: Path) -> None:
    builder, _ = build(76)
    with scene(builder, tmp_path) as s:
        s.tap.write("root", 512, b"guest" + bytes(507))
        s.provider.fill_behind()
        assert s.provider.filled.wait(20)
        image = bytearray(builder.model.images()["root"])
        image[512:1024] = b"guest" + bytes(507)
        assert s.tap.held("root", 0, len(image)) == bytes(image)


def test_many_guests_read_at_once(tmp_path: Path) -> None:
    builder, _ = build(77)
    image = builder.model.images()["root"]
    wrong: list[int] = []
    with scene(builder, tmp_path) as s:
        s.provider.fill_behind()

        def reader(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(30):
                at = rng.randrange(len(image) // 512) * 512
                if s.tap.read("root", at, 512) != image[at : at + 512]:
                    wrong.append(at)

        threads = [threading.Thread(target=reader, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not wrong


def large_disk() -> JournalBuilder:
    """16 GiB with data at both ends and in the middle, and one piece of 3 MiB."""
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 64 << 20})
    builder.end()
    rng = random.Random(6)
    for at in (0, (32 << 20) - 512, (64 << 20) - 4096):
        builder.write(0, at, rng.randbytes(4096 if at != (32 << 20) - 512 else 1024))
        builder.frame()
    for at in range(3):
        builder.write(0, (40 + at) << 20, rng.randbytes(1 << 20))
    builder.segment()
    return builder


def test_long_zeroes_are_told_and_not_sent(tmp_path: Path) -> None:
    builder = large_disk()
    image = builder.model.images()["root"]
    with scene(builder, tmp_path) as s:
        assert s.tap.read("root", 0, 64 << 20) == image
        assert s.tap.fills < 20


def test_fills_cross_slots_and_pieces(tmp_path: Path) -> None:
    builder = large_disk()
    image = builder.model.images()["root"]
    with scene(builder, tmp_path) as s:
        start = (40 << 20) - 512
        assert s.tap.read("root", start, 5 << 20) == image[start : start + (5 << 20)]


@pytest.mark.invariant("I10")
def test_damaged_data_is_refused_by_name_and_the_rest_is_served(tmp_path: Path) -> None:
    builder, store = JournalBuilder(MemoryStore()), None
    assert isinstance(builder.store, MemoryStore)
    store = builder.store
    builder.generation({"root": 4096})
    builder.end()
    builder.segment()
    for at in (0, 2048):
        builder.write(0, at, bytes([at // 512 + 1]) * 512)
        builder.segment()
    with scene(builder, tmp_path) as s:
        name = max(n for n in store.objects if "/chain/" in n)
        data = bytearray(store.objects[name])
        data[30] ^= 1
        store.objects[name] = bytes(data)
        assert s.tap.read("root", 0, 512) == b"\x01" * 512
        with pytest.raises(Refused, match="cannot be used"):
            s.tap.read("root", 2048, 512)
        assert isinstance(s.provider.problem, PayloadDamaged)
        s.provider.fill_behind()
        assert not s.provider.filled.wait(0.5)
        assert s.tap.read("root", 0, 512) == b"\x01" * 512


def test_ranges_that_no_disk_has_are_refused(tmp_path: Path) -> None:
    builder, _ = build(78)
    size = len(builder.model.images()["root"])
    with scene(builder, tmp_path) as s:
        for disk, offset, length in (
            ("other", 0, 512),
            ("root", size, 512),
            ("root", 0, size + 512),
            ("root", -512, 512),
            ("root", 0, 0),
        ):
            with pytest.raises(Refused):
                s.tap.read(disk, offset, length)


def test_a_store_that_is_away_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providing, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(providing, "_FIRST_SECONDS", 0.0)
    builder, store = build(79)
    real, away = store.get_range, threading.Event()
    away.set()

    def get_range(name: str, start: int, length: int) -> bytes:
        if away.is_set():
            raise StoreUnavailable("The store does not answer.")
        return real(name, start, length)

    with scene(builder, tmp_path) as s:
        monkeypatch.setattr(store, "get_range", get_range)
        s.provider.fill_behind()
        assert not s.provider.filled.wait(0.3)
        assert isinstance(s.provider.problem, StoreUnavailable)
        away.clear()
        assert s.provider.filled.wait(20)
        image = builder.model.images()["root"]
        assert s.tap.held("root", 0, len(image)) == image


def test_a_scratch_disk_that_is_full_is_named(tmp_path: Path) -> None:
    builder, _ = build(78)
    with scene(builder, tmp_path) as s:
        s.tap.fill_error = "no_space"
        with pytest.raises(Refused, match="full"):
            s.tap.read("root", 0, 512)


def test_the_window_cannot_be_shortened(tmp_path: Path) -> None:
    builder, _ = build(78)
    with scene(builder, tmp_path) as s:
        s.tap.read("root", 0, 512)
        assert s.tap.seals_tried == ["PermissionError"]


def test_a_tap_that_goes_away_fails_what_waits(tmp_path: Path) -> None:
    builder, _ = build(78)
    with scene(builder, tmp_path) as s:
        s.tap.read("root", 0, 512)
        s.tap.close()
        with pytest.raises(TapFailed):
            for _ in range(100):
                s.provider._channel.call("missing", {"disk": "root", "from": 0})


def test_no_tap_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(TapFailed) as raised:
        TapChannel(tmp_path / "nothing.sock")
    assert raised.value.retryable


def test_a_frame_that_many_wait_for_is_fetched_once() -> None:
    builder, store = build(79)
    with open_journal(store, builder.identity, builder.tenant_key) as journal:
        cache = FrameCache(journal)
        before = store.reads
        got: list[bytes] = []
        number = next(n for n in range(journal.frames) if journal.frame(n).payload_sealed)
        threads = [threading.Thread(target=lambda: got.append(cache.get(number))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.reads == before + 1
        assert len(set(got)) == 1


@pytest.mark.invariant("I12")
def test_the_cache_of_frames_is_bounded() -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 1 << 20})
    builder.end()
    for number in range(20):
        builder.write(0, number * 4096, bytes([number]) * 4096)
        builder.frame()
    builder.segment()
    with open_journal(builder.store, builder.identity, builder.tenant_key) as journal:
        cache = FrameCache(journal, bytes_max=20_000)
        for number in range(journal.frames):
            cache.get(number)
            assert sum(map(len, cache._frames.values())) <= 20_000 + 4096
        assert cache.get(journal.frames - 1)[-4096:] == bytes([19]) * 4096
