"""The host loses its power: tap and agent are gone, the ring is gone, and so is any block that was
not flushed. The journal has the disk again after a sync that reads only what the log names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place, made_place
from tests.tap.daemon import Channel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
DISK_BYTES = 192 * MIB
PAGE = 4096


class Volatile:
    """A disk with a cache that loses its power: what each unflushed page held before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before: dict[int, bytes] = {}

    def will_write(self, page: int) -> None:
        """Remember what a cut may bring back."""
        with self.path.open("rb") as file:
            file.seek(page * PAGE)
            self.before.setdefault(page, file.read(PAGE))

    def lose(self, rng: random.Random) -> int:
        """Each unflushed page is as it was, or not; how many are."""
        lost = [page for page in self.before if rng.random() < 0.5]
        with self.path.open("r+b") as file:
            for page in lost:
                file.seek(page * PAGE)
                file.write(self.before[page])
        return len(lost)


def _tap_disk(place: Place) -> dict[str, Any]:
    channel = Channel(place.site.setup.path("run") / "tap.sock")
    try:
        found: dict[str, Any] = channel.call("status")["groups"][0]["disks"][0]
        return found
    finally:
        channel.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _log(place: Place) -> Path:
    return next(place.site.setup.path("tap").glob("*.hot"))


def _write_and_cut(place: Place, rng: random.Random) -> bytes:
    """Writes over some extents, some flushed, some stored; then the power goes. The empty log."""
    uri = place.protect()
    _until(lambda: bool(_tap_disk(place)["hot"]["state"] == "marked"))
    empty = _log(place).read_bytes()
    volatile = Volatile(place.disk)
    with NbdClient(uri) as client:
        for turn in range(120):
            page = rng.randrange(20) * 1024 + rng.randrange(64)
            volatile.will_write(page)
            client.write(page * PAGE, rng.randbytes(PAGE))
            if turn == 40:
                client.flush()
                volatile.before.clear()
            if turn == 80:
                place.drain()
        place.kill(place.site.agent)
        for page in range(20 * 1024, 20 * 1024 + 8):
            volatile.will_write(page)
            client.write(page * PAGE, rng.randbytes(PAGE))
        place.kill(place.site.tap)
    place.site.drop_rings()
    assert volatile.lose(rng) > 10
    return empty


def _restart(place: Place) -> dict[str, Any]:
    (place.site.setup.path("run") / "tap.sock").unlink()
    place.site.start_tap()
    disk = _tap_disk(place)
    place.site.start_agent()
    place.site.attach()
    place.site.wait_protected(lambda _now: None)
    place.drain()
    return disk


@pytest.mark.invariant("I2", "I3", "I11")
def test_after_a_power_cut_the_journal_has_the_disk_again(folder: Path) -> None:
    with made_place(folder, DISK_BYTES) as place:
        _write_and_cut(place, random.Random(31))
        disk = _restart(place)
        assert 0 < disk["to_read_bytes"] < DISK_BYTES / 2
        source = place.lose()
        assert difference(place.export("latest-write"), source) == ""


@pytest.mark.invariant("I3")
def test_with_an_empty_log_the_difference_is_seen(folder: Path) -> None:
    """The control: without the marks nothing is read, and what comes back is not the disk."""
    with made_place(folder, DISK_BYTES) as place:
        empty = _write_and_cut(place, random.Random(32))
        _log(place).write_bytes(empty)
        assert _restart(place)["to_read_bytes"] == 0
        source = place.lose()
        assert difference(place.export("latest-write"), source) != ""
