"""Raw images: long runs go past the page cache, short ones through it, and every byte arrives."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from host_agent.wire.limits import FRAME_PLAIN_BYTES_MAX, KIB, MIB
from workers.restore.errors import TargetFailed
from workers.restore.image import RawImage

_SIZE = 24 * MIB
_Write = Callable[[int, Sequence[memoryview], int], int]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[RawImage]:
    made = RawImage(tmp_path, "root", _SIZE)
    made.create()
    yield made
    made.close()


def _runs(rng: random.Random) -> list[tuple[int, bytes]]:
    """Neighbours and gaps of all lengths, by sectors: most share pages with the next."""
    runs, at = [], 0
    longest = FRAME_PLAIN_BYTES_MAX // 512
    while at < _SIZE:
        sectors = rng.choice([1, 9, rng.randrange(1, 1000), rng.randrange(1, longest + 1)])
        length = min(512 * sectors, _SIZE - at)
        if rng.random() < 0.8:
            runs.append((at, rng.randbytes(length)))
        at += length
    rng.shuffle(runs)
    return runs


def _cut(rng: random.Random, data: bytes) -> list[memoryview]:
    """The same bytes as buffers of any length, from places of any alignment."""
    buffers, at = [], 0
    while at < len(data):
        length = min(rng.choice([512, 4096, 65536, 1 * MIB]), len(data) - at)
        buffers.append(memoryview(b"x" + data[at : at + length])[1:])
        at += length
    return buffers


def _write_all(image: RawImage, rng: random.Random) -> bytes:
    """Write runs from several threads; what the image must be."""
    expected = bytearray(_SIZE)
    with ThreadPoolExecutor(3) as pool:
        pending = []
        for at, data in _runs(rng):
            expected[at : at + len(data)] = data
            pending.append(pool.submit(image.write, at, _cut(rng, data), len(data)))
        for done in pending:
            done.result()
    return bytes(expected)


def _content(image: RawImage) -> bytes:
    return (image.path.parent / "root.raw.partial").read_bytes()


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_byte_arrives_whatever_way_it_goes(image: RawImage, seed: int) -> None:
    assert _content(image) == bytes(_SIZE)
    expected = _write_all(image, random.Random(seed))
    assert _content(image) == expected


def test_long_runs_leave_nothing_in_the_page_cache(
    image: RawImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    if image._direct < 0:
        pytest.skip("this file system has no direct writes")
    written: dict[int, int] = {}
    real: _Write = os.pwritev

    def count(fd: int, buffers: Sequence[memoryview], at: int) -> int:
        done = real(fd, buffers, at)
        written[fd] = written.get(fd, 0) + done
        return done

    monkeypatch.setattr(os, "pwritev", count)
    image.write(512, [memoryview(bytes(MIB))], MIB)
    image.write(8 * MIB, [memoryview(bytes(64 * KIB))], 64 * KIB)
    # A page less at each end, which others may have written parts of.
    assert written == {image._direct: MIB - 4096, image._fd: 64 * KIB}


@pytest.mark.parametrize("manner", ["refused", "short"])
def test_what_is_not_taken_directly_goes_the_other_way(
    image: RawImage, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    real: _Write = os.pwritev

    def take(fd: int, buffers: Sequence[memoryview], at: int) -> int:
        if fd != image._direct:
            return real(fd, buffers, at)
        if manner == "refused":
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, [buffers[0][: len(buffers[0]) // 8192 * 4096]], at)

    monkeypatch.setattr(os, "pwritev", take)
    expected = _write_all(image, random.Random(4))
    assert _content(image) == expected


def test_another_error_of_a_direct_write_is_named(
    image: RawImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(TargetFailed):
        image.write(0, [memoryview(bytes(MIB))], MIB)
