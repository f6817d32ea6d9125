"""A disk that another process keeps and mirrors into the tap, by real processes throughout."""

from __future__ import annotations

import random

import pytest

from tests.hypervisor.machines import (
    MIB,
    Daemon,
    attach,
    detach,
    wait_protected,
)
from tests.integration.place import Place, difference

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(180)]


def fill(daemon: Daemon, seed: int, count: int = 200) -> None:
    """Writes of the machine, all of them acknowledged."""
    rng = random.Random(seed)
    with daemon.write() as guest:
        for _ in range(count):
            at = rng.randrange(guest.size // 4096 - 16) * 4096
            guest.write(at, rng.randbytes(4096 * rng.randint(1, 16)))
        guest.zero(MIB, 64 << 10)
        guest.flush()


@pytest.mark.invariant("I1", "I2")
def test_a_running_disk_is_in_the_journal(place: Place, daemon: Daemon) -> None:
    fill(daemon, 1)
    answer = attach(place, daemon.qmp)
    assert answer["size"] == 48 * MIB
    assert answer["refused_meanwhile"]
    wait_protected(place)
    place.site.checkpoint("first")
    first = place.disk.read_bytes()
    fill(daemon, 2)
    place.site.checkpoint("second")
    second = place.disk.read_bytes()
    fill(daemon, 3)
    place.drain()
    detach(place)
    fill(daemon, 4, 5)
    assert place.site.status()["mirrors"] == []
    assert difference(place.export("tag:first"), first) == ""
    assert difference(place.export("tag:second"), second) == ""
