"""An outage of the line that the ring alone could not outlast: sealed frames wait on disk."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def configure(place: Place, spool_mib: int) -> None:
    """A small ring, and a spool of that size."""
    config = place.site.setup.path("agent.toml")
    text = config.read_text() + "ring_mib = 16\n"
    text += f'\n[spool]\npath = "{place.folder}/spool"\nmib = {spool_mib}\n'
    config.write_text(text)


def write(client: NbdClient, rng: random.Random, mib: int, pause: float = 0.02) -> None:
    """Random data, by default no faster than a busy machine's disk takes it."""
    for _ in range(mib * 4):
        client.write(rng.randrange(0, 63 * MIB, 512), rng.randbytes(MIB // 4))
        time.sleep(pause)


def wait_spooled(place: Place, seconds: float = 30) -> dict[str, Any]:
    """Until the ring's pressure is over; the spool as `status` shows it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = place.site.status()
        if now["spool"]["bytes"] > MIB and now["ring"]["fill"] < 0.6:
            return dict(now["spool"])
        time.sleep(0.1)
    raise AssertionError(f"nothing is spooled: {now['spool']} {now['ring']}")


@pytest.mark.invariant("I1", "I2", "I3", "I4")
def test_what_was_spooled_arrives_in_order(place: Place) -> None:
    """The agent killed twice in between; no sync, no gap, every marker of the outage is there."""
    configure(place, 64)
    uri, rng = place.protect(), random.Random(3)
    with NbdClient(uri) as client:
        write(client, rng, 2)
        place.drain()
        place.kill(place.site.ingest)
        write(client, rng, 16)
        spool = wait_spooled(place)
        assert spool["age_seconds"] > 0
        place.site.checkpoint("in the outage", wait=False)
        inside = client.read_all()
        place.kill(place.site.agent)
        write(client, rng, 2)
        place.site.start_agent()
        write(client, rng, 12)
        wait_spooled(place)
        place.site.start_ingest()
        write(client, rng, 4)
        place.kill(place.site.agent)
        place.site.start_agent()
        now = place.drain()
    assert now["tap"]["counters"]["fell"] == 0
    assert (now["spool"]["bytes"], now["spool"]["failure"]) == (0, None)
    place.site.checkpoint("after")
    source = place.lose()
    assert difference(place.export("tag:in the outage"), inside) == ""
    assert difference(place.export("tag:after"), source) == ""


@pytest.mark.invariant("I1", "I2", "I12")
@pytest.mark.soak
def test_a_full_spool_becomes_a_sync(place: Place) -> None:
    """The control: with one that is full the stream is dirty, as without one; never wrong."""
    configure(place, 64)
    uri, rng = place.protect(), random.Random(4)
    with NbdClient(uri) as client:
        place.site.checkpoint("before")
        before = client.read_all()
        place.kill(place.site.ingest)
        write(client, rng, 96, 0.002)
        place.site.start_ingest()
        now = place.drain()
    assert now["tap"]["counters"]["fell"] >= 1
    place.site.checkpoint("after")
    source = place.lose()
    assert difference(place.export("tag:before"), before) == ""
    assert difference(place.export("tag:after"), source) == ""
