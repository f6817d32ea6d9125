"""What only refers to itself is found, young or old, without a long look at everything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator

import pytest

from app.dsm import memory
from app.dsm.memory import collect_often

pytestmark = pytest.mark.anyio


class _Ring:
    """It refers to itself: only the collector ends it."""

    def __init__(self) -> None:
        self.me = self


def _lost() -> weakref.ref[_Ring]:
    return weakref.ref(_Ring())


@contextlib.asynccontextmanager
async def _collecting(closed: list[int]) -> AsyncIterator[None]:
    """It runs; `closed`: how many connections ended."""
    task = asyncio.create_task(collect_often(lambda: closed[0]))
    await asyncio.sleep(0)
    assert not gc.isenabled()
    yield
    task.cancel()
    await asyncio.wait([task])
    assert gc.isenabled()


async def _until(ring: weakref.ref[_Ring]) -> None:
    async with asyncio.timeout(10):
        while ring() is not None:
            await asyncio.sleep(0.01)


async def test_what_is_young_is_found_soon() -> None:
    async with _collecting([0]):
        await _until(_lost())


def _lost_when_old() -> weakref.ref[_Ring]:
    ring = _Ring()
    gc.collect()
    return weakref.ref(ring)


async def test_what_is_old_is_found_when_many_connections_ended() -> None:
    closed = [0]
    async with _collecting(closed):
        ring = _lost_when_old()
        await asyncio.sleep(1)
        assert ring() is not None
        closed[0] += 1_000
        await _until(ring)


async def test_what_is_old_is_found_within_the_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_ALL_SECONDS", 0.2)
    async with _collecting([0]):
        await _until(_lost_when_old())
