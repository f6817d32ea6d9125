"""Exports are byte-exact, verified, and never take a name before they are right."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from host_agent.wire.crc import crc32c
from host_agent.wire.errors import HoldfastError
from tests.model.builder import JournalBuilder
from tests.model.sectors import faults
from tests.model.store import MemoryStore
from tests.restore.replay import build, moments
from workers.journal import chain
from workers.journal.errors import PayloadDamaged
from workers.journal.mapfile import MapUnusable
from workers.journal.points import resolve
from workers.journal.reader import Journal, open_journal
from workers.restore import fetch, image, readback
from workers.restore.errors import TargetExists, TargetFailed, TargetFull, VerifyFailed
from workers.restore.export import Exported, ExportOptions, export
from workers.restore.imagecrc import ImageCrc, after_zeroes, zeroes_crc


@contextmanager
def opened(builder: JournalBuilder) -> Iterator[Journal]:
    with open_journal(builder.store, builder.identity, builder.tenant_key) as journal:
        assert journal.damage is None
        yield journal


def export_at(builder: JournalBuilder, selector: str, folder: Path, **options: Any) -> Exported:
    with opened(builder) as journal:
        return export(journal, resolve(journal, selector), ExportOptions(folder, **options))


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("seed", range(50, 56))
def test_images_equal_the_model(seed: int, tmp_path: Path) -> None:
    builder, _ = build(seed)
    rng = random.Random(seed)
    choices = [moment for moment in moments(builder) if moment.may_be_chosen]
    for number, moment in enumerate(rng.sample(choices, 5)):
        folder = tmp_path / str(number)
        done = export_at(builder, moment.selector, folder, digest=number % 2 == 1)
        assert {disk.name for disk in done.disks} == set(moment.images)
        for disk in done.disks:
            data = disk.path.read_bytes()
            assert data == moment.images[disk.name]
            assert disk.digest == (blake3(data).hexdigest() if number % 2 else "")
            assert disk.path == folder / f"{disk.name}.raw"
            assert disk.size == len(data)
        assert sorted(p.name for p in folder.iterdir()) == sorted(f"{n}.raw" for n in moment.images)


def test_images_hold_only_sectors_of_their_own_disk(tmp_path: Path) -> None:
    builder, _ = build(57)
    for number, disk in enumerate(("root", "data")):
        done = export_at(builder, "latest-write", tmp_path / disk)
        found = next(d for d in done.disks if d.name == disk).path.read_bytes()
        assert not list(faults(found, number, newest=10_000))
        assert list(faults(found, 1 - number, newest=10_000))


def sparse_journal(size: int = 1 << 34) -> JournalBuilder:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": size})
    builder.end()
    builder.write(0, 0, b"first" + bytes(507))
    builder.write(0, size // 2, b"middle" + bytes(506))
    builder.write(0, size - 512, b"last" + bytes(508))
    builder.segment()
    return builder


def test_a_large_empty_disk_stays_sparse(tmp_path: Path) -> None:
    size = 1 << 30
    done = export_at(sparse_journal(size), "latest-write", tmp_path)
    status = done.disks[0].path.stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 1 << 20
    assert done.disks[0].bytes_written == 3 * 512
    with done.disks[0].path.open("rb") as file:
        file.seek(size - 512)
        assert file.read(4) == b"last"


def test_each_frame_is_fetched_once(tmp_path: Path) -> None:
    builder, store = build(58)
    with opened(builder) as journal:
        point = resolve(journal, "latest-write")
        before = store.reads
        export(journal, point, ExportOptions(tmp_path))
        assert store.reads - before <= journal.segments


# -- what is in the way


def test_nothing_is_replaced_unless_told(tmp_path: Path) -> None:
    builder, _ = build(60)
    (tmp_path / "root.raw").write_bytes(b"precious")
    with pytest.raises(TargetExists) as raised:
        export_at(builder, "latest-write", tmp_path)
    assert "--force" in raised.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["root.raw"]
    assert (tmp_path / "root.raw").read_bytes() == b"precious"
    export_at(builder, "latest-write", tmp_path, force=True)
    assert (tmp_path / "root.raw").read_bytes() == builder.model.images()["root"]


def test_what_an_interrupted_export_left_is_replaced(tmp_path: Path) -> None:
    builder, _ = build(60)
    (tmp_path / "root.raw.partial").write_bytes(b"x" * 100_000)
    export_at(builder, "latest-write", tmp_path)
    assert (tmp_path / "root.raw").read_bytes() == builder.model.images()["root"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.invariant("I10")
def test_damaged_data_leaves_the_old_image_and_no_new_name(tmp_path: Path) -> None:
    builder, store = build(61)
    (tmp_path / "root.raw").write_bytes(b"precious")
    with opened(builder) as journal:
        point = resolve(journal, "latest-write")
        for name in [name for name in store.objects if "/chain/" in name]:
            data = bytearray(store.objects[name])
            spots = range(16, len(data) // 2, 20)
            data[16 : len(data) // 2 : 20] = bytes(len(spots))
            store.objects[name] = bytes(data)
        with pytest.raises(PayloadDamaged) as raised:
            export(journal, point, ExportOptions(tmp_path, force=True))
    assert raised.value.place
    assert (tmp_path / "root.raw").read_bytes() == b"precious"
    assert not (tmp_path / "data.raw").exists()


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("cut", [lambda _: None, lambda data: data[:50]], ids=["lost", "cut"])
def test_a_segment_that_went_away_meanwhile_is_named(
    tmp_path: Path, cut: Callable[[bytes], bytes | None]
) -> None:
    builder, store = build(61)
    with opened(builder) as journal:
        point = resolve(journal, "latest-write")
        for name in [n for n in store.objects if "/chain/" in n]:
            left = cut(store.objects.pop(name))
            if left is not None:
                store.objects[name] = left
        with pytest.raises(PayloadDamaged):
            export(journal, point, ExportOptions(tmp_path))


# -- the place that is written to


@pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "buffered"])
def test_what_the_disk_changed_is_found_by_reading_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_direct: bool
) -> None:
    builder, _ = build(62)
    rng = random.Random(3)
    if not is_direct:
        monkeypatch.setattr(readback, "open_direct", lambda *_: -1)
    # The disk returns another bit than was written.
    real = os.preadv

    def spoil(fd: int, buffers: list[Any], at: int) -> int:
        done = real(fd, buffers, at)
        place = rng.randrange(done)
        buffers[0][place] ^= 1 << rng.randrange(8)
        return done

    monkeypatch.setattr(os, "preadv", spoil)
    for _ in range(40):
        with pytest.raises(VerifyFailed):
            export_at(builder, "latest-write", tmp_path)
        assert not list(tmp_path.glob("*.raw"))


def test_a_write_that_never_reached_its_place_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, _ = build(62)
    rng = random.Random(4)
    write = image.RawImage.write
    count = 0
    for turn in range(20):
        lost = rng.randrange(6)

        def lose(self: image.RawImage, *arguments: Any, lost: int = lost) -> None:
            nonlocal count
            count += 1
            if count != lost + 1:
                write(self, *arguments)

        count = 0
        monkeypatch.setattr(image.RawImage, "write", lose)
        with pytest.raises(VerifyFailed):
            export_at(builder, "latest-write", tmp_path / str(turn))
        assert count > lost


def test_what_appears_where_nothing_was_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In regions that no piece lies in, and in those that were read already no reader looks."""
    size = 1 << 30
    sync = image.RawImage.sync
    for at in (100 << 20, size // 2 - (16 << 20), size - (16 << 20) - 512):

        def spoil(self: image.RawImage, at: int = at) -> None:
            os.pwrite(self._fd, b"x", at)
            sync(self)

        with monkeypatch.context() as patched, pytest.raises(VerifyFailed):
            patched.setattr(image.RawImage, "sync", spoil)
            export_at(sparse_journal(size), "latest-write", tmp_path)
        assert not list(tmp_path.glob("*.raw"))


@pytest.mark.parametrize("call", ["open", "ftruncate", "pwritev", "fsync", "preadv", "lseek"])
def test_every_refused_call_is_a_named_error(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th call fails, for n = 1, 2, … until the export gets through."""
    builder, _ = build(63)
    real = getattr(os, call)
    failed = 0
    for turn in range(1, 60):
        calls = 0

        def refuse(*arguments: Any, turn: int = turn) -> Any:
            nonlocal calls
            mine = any(isinstance(a, (str, Path)) and str(tmp_path) in str(a) for a in arguments)
            if call != "open" or mine:
                calls += 1
                if calls == turn:
                    raise OSError(errno.EIO, "Input/output error")
            return real(*arguments)

        folder = tmp_path / str(turn)
        with opened(builder) as journal:
            point = resolve(journal, "latest-write")
            with monkeypatch.context() as patched:
                patched.setattr(os, call, refuse)
                try:
                    export(journal, point, ExportOptions(folder))
                except HoldfastError as error:
                    failed += 1
                    last: HoldfastError | None = error
                else:
                    last = None
        if last is None and calls < turn:
            break
        if last is not None:
            assert isinstance(last, (TargetFailed, VerifyFailed, MapUnusable))
            assert last.hint
            for path in folder.glob("*.raw"):
                assert path.read_bytes() == builder.model.images()[path.stem]
    else:
        pytest.fail("the export never got through")
    assert failed or call == "lseek"


@pytest.mark.root
def test_a_full_disk_is_named_and_can_be_tried_again(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 4 << 20})
    builder.end()
    for at in range(0, 4 << 20, 1 << 20):
        builder.write(0, at, random.Random(at).randbytes(1 << 20))
        builder.segment()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        with pytest.raises(TargetFull) as raised:
            export_at(builder, "latest-write", small)
        assert raised.value.retryable
        assert not list(small.glob("*.raw"))
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        done = export_at(builder, "latest-write", small)
        assert done.disks[0].path.read_bytes() == builder.model.images()["root"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    builder, _ = build(62)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TargetFailed):
        export_at(builder, "latest-write", tmp_path / "file" / "folder")


# -- memory


@pytest.mark.invariant("I12")
def test_reads_are_bounded_whatever_compresses(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 1 << 30})
    builder.end()
    for number in range(12):
        for at in range(3):
            builder.write(0, (number * 3 + at) << 20, bytes(1 << 20))
        builder.frame()
    builder.segment()
    with opened(builder) as journal:
        reads = list(fetch.plan_reads(journal, iter(range(journal.frames))))
        assert sum(len(read.frames) for read in reads) == journal.frames
        assert max(read.plain for read in reads) <= fetch.PLAIN_BYTES_MAX
        assert len(reads) >= 3
    assert chain.READ_AHEAD * chain.TAIL_BYTES_GUESS < 1 << 24


def test_neighbours_are_read_together_and_distant_frames_apart() -> None:
    builder = JournalBuilder(MemoryStore())
    builder.generation({"root": 1 << 30})
    builder.end()
    rng = random.Random(5)
    for number in range(6):
        builder.write(0, number << 20, rng.randbytes(512 * 1024))
        builder.frame()
    builder.segment()
    with opened(builder) as journal:
        first = journal.frames - 6
        near = list(fetch.plan_reads(journal, iter(range(first, first + 6))))
        far = list(fetch.plan_reads(journal, iter([first, first + 2, first + 4])))
    assert len(near) == 1
    assert len(far) == 3


# -- the image's CRC


def test_the_crc_of_an_image_follows_from_its_pieces_in_any_order() -> None:
    rng = random.Random(9)
    for _ in range(60):
        size = rng.randrange(1, 4000)
        whole, pieces, at = bytearray(size), [], 0
        while (at := at + rng.randrange(300)) < size:
            data = rng.randbytes(min(rng.randrange(1, 300), size - at))
            whole[at : at + len(data)] = data
            pieces.append((at, len(data), crc32c(data)))
            at += len(data)
        rng.shuffle(pieces)
        crc = ImageCrc(size)
        for start, length, own in pieces:
            crc.add(
                np.array([start], np.uint64),
                np.array([length], np.uint64),
                np.array([own], np.uint32),
            )
        assert crc.value() == crc32c(bytes(whole))
        assert zeroes_crc(size) == crc32c(bytes(size))
        assert after_zeroes(crc.value(), 99) == crc32c(bytes(whole) + bytes(99))
