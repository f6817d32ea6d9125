"""Regions: whole exactly when every piece of them was written."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from host_agent.wire.crc import crc32c
from workers.restore import readback
from workers.restore.readback import ReadBack

_REGION = 64 * 1024
_SIZE = 20 * _REGION + 512


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readback, "REGION_BYTES", _REGION)


def _pieces(rng: random.Random) -> list[tuple[int, int]]:
    """Neighbours and gaps, many across a region's end."""
    pieces, at = [], 0
    while at < _SIZE:
        length = min(512 * rng.randrange(1, 100), _SIZE - at)
        if rng.random() < 0.7:
            pieces.append((at, length))
        at += length
    return pieces


@pytest.mark.parametrize("seed", range(20))
def test_a_region_is_whole_with_its_last_piece(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    pieces = _pieces(rng)
    path = tmp_path / "image"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, _SIZE)
    reading = ReadBack(path, fd, _SIZE)
    image = bytearray(_SIZE)
    try:
        reading.expect(*_columns(pieces))
        rng.shuffle(pieces)
        left, whole = list(pieces), []
        while left:
            batch, left = left[:3], left[3:]
            for start, length in batch:
                data = rng.randbytes(length)
                image[start : start + length] = data
                os.pwrite(fd, data, start)
            told = reading.take(*_columns(batch))
            missing = {r for start, length in left for r in _regions(start, length)}
            touched = {r for start, length in batch for r in _regions(start, length)}
            if reading._direct >= 0:
                assert set(told) == touched - missing
                assert len(told) == len(set(told))
            assert sum(map(reading.read, told)) == sum(
                min(_REGION, _SIZE - r * _REGION) for r in told
            )
            whole += told
        rest = list(reading.rest())
        assert not set(rest) & set(whole)
        for region in rest:
            reading.read(region)
        assert reading.value() == crc32c(bytes(image))
    finally:
        reading.close()
        os.close(fd)


def _regions(start: int, length: int) -> range:
    return range(start // _REGION, (start + length - 1) // _REGION + 1)


def _columns(pieces: list[tuple[int, int]]) -> tuple[readback.Bytes, readback.Bytes]:
    start, length = np.array(pieces, np.uint64).T
    return start, length
