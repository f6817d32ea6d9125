"""A ring that overflows: the guest goes on, a sync follows, and no moment is wrong meanwhile."""

from __future__ import annotations

import random
import signal

import pytest

from infra.demo.report import DemoFailed
from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def with_small_ring(place: Place) -> None:
    """The smallest ring that the configuration allows."""
    config = place.site.setup.path("agent.toml")
    config.write_text(config.read_text() + "ring_mib = 8\n")


@pytest.mark.invariant("I1", "I2", "I3", "I12")
def test_a_full_ring_costs_checkpoints_never_data(place: Place) -> None:
    rng = random.Random(12)
    with_small_ring(place)
    uri = place.protect()
    with NbdClient(uri) as client:
        for _ in range(50):
            client.write(rng.randrange(0, 60 * MIB, 4096), rng.randbytes(16384))
        place.site.checkpoint("before")
        before = client.read_all()
        agent = place.site.agent
        assert agent is not None
        agent.popen.send_signal(signal.SIGSTOP)
        for _ in range(48):  # six rings full
            client.write(rng.randrange(0, 63 * MIB, 512), rng.randbytes(MIB))
        agent.popen.send_signal(signal.SIGCONT)
        for _ in range(50):
            client.write(rng.randrange(0, 60 * MIB, 4096), rng.randbytes(4096))
        now = place.site.wait_protected(lambda _now: None)
        place.site.checkpoint("after")
        after = client.read_all()
        client.write(0, b"last" * 1024)
    assert now["tap"]["counters"]["fell"] >= 1  # it did overflow
    place.drain()
    source = place.lose()
    assert difference(place.export("tag:before"), before) == ""
    assert difference(place.export("tag:after"), after) == ""
    assert difference(place.export("latest-write"), source) == ""
    _nothing_inside_the_sync_can_be_chosen(place)


def _nothing_inside_the_sync_can_be_chosen(place: Place) -> None:
    """The control: between its begin and its end the journal is no moment of the disk."""
    (stream,) = place.safe.points()["streams"]
    first, second = stream["history"][:2]
    assert first["last_seq"] + 1 < second["first_seq"]
    with pytest.raises(DemoFailed, match="sync"):
        place.export(f"seq:{(first['last_seq'] + second['first_seq']) // 2}")
