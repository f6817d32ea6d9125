"""Real TLS over a line that resets, stalls, slices and corrupts: resumed, equal, never wrong.

Negative control: `test_check_notices_a_lost_write` breaks the tap's record of one write; the same
comparison must fail then.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from host_agent.wire.record import Op
from tests.agent.line import Line, made_line
from tests.stream.fake_tap import Item
from tests.stream.harness import in_loop


def guest_writes(line: Line, rng: random.Random, count: int) -> None:
    """Overlapping writes, some incompressible."""
    for _ in range(count):
        length = 512 * rng.randint(1, 24)
        offset = 512 * rng.randint(0, (line.tap.disk_bytes - length) // 512)
        line.tap.write(offset, rng.randbytes(length))
        if rng.random() < 0.1:
            line.tap.flush()


async def check_equal(line: Line, folder: Path) -> None:
    await line.drained()
    image = await asyncio.to_thread(line.restored, folder / "out")
    assert image == bytes(line.tap.disk)


@pytest.mark.invariant("I2", "I4", "I10")
@in_loop
async def test_resets_in_the_middle_of_frames(tmp_path: Path) -> None:
    rng = random.Random(1)
    async with made_line(tmp_path) as line:
        await line.drained()
        for _ in range(12):
            line.proxy.weather.reset_after = rng.randint(1, 120_000)
            guest_writes(line, rng, 20)
            await asyncio.sleep(0.1)
        line.proxy.weather.reset_after = None
        await check_equal(line, tmp_path)
        assert line.stream.figures.counters.connections_failed >= 3
        assert line.tap.cause == "first_start", "no reset cost a new generation"


@pytest.mark.invariant("I10")
@in_loop
async def test_flipped_bits_end_the_connection_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(2)
    async with made_line(tmp_path) as line:
        await line.drained()
        for _ in range(4):
            line.proxy.weather.flip_after = rng.randint(1, 50_000)
            guest_writes(line, rng, 20)
            await line.until(lambda: line.proxy.weather.flip_after is None)
            await asyncio.sleep(0.2)
        await check_equal(line, tmp_path)
        assert line.stream.figures.counters.connections_failed >= 4


@pytest.mark.slow
@in_loop
async def test_one_byte_segments(tmp_path: Path) -> None:
    rng = random.Random(3)
    async with made_line(tmp_path) as line:
        line.proxy.weather.is_one_byte = True
        guest_writes(line, rng, 5)
        await line.drained(40)
        assert line.proxy.connections == 1
        await check_equal(line, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["is_stalled", "is_deaf"])
@in_loop
async def test_a_line_that_went_dead_is_noticed_and_replaced(tmp_path: Path, kind: str) -> None:
    """The silence limit is 4 s here, 12 s in the product: both ends stay open all the time."""
    rng = random.Random(4)
    async with made_line(tmp_path) as line:
        await line.drained()
        setattr(line.proxy.weather, kind, True)
        guest_writes(line, rng, 10)
        failed = line.stream.figures.counters.connections_failed
        await line.until(lambda: line.stream.figures.counters.connections_failed > failed, 8)
        setattr(line.proxy.weather, kind, False)
        await line.drained(30)
        await check_equal(line, tmp_path)


@in_loop
async def test_an_idle_connection_lives_by_its_probes(tmp_path: Path) -> None:
    async with made_line(tmp_path) as line:
        await line.drained()
        await asyncio.sleep(5.0)
        counters = line.stream.figures.counters
        assert counters.connections == 1, "5 s of silence from the guest, 4 s is the limit"
        assert counters.probes_answered > 8
        segments = list((line.setup.path("store")).rglob("chain/*"))
        await asyncio.sleep(1.0)
        assert list((line.setup.path("store")).rglob("chain/*")) == segments, "idle stores nothing"


@in_loop
async def test_check_notices_a_lost_write(tmp_path: Path) -> None:
    async with made_line(tmp_path) as line:
        await line.drained()
        line.tap.disk[4096:4608] = b"?" * 512
        line.tap._append(Item(Op.FLUSH, 0))
        with pytest.raises(AssertionError):
            await check_equal(line, tmp_path)
