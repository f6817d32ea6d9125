"""Several moments served at once: each its own machine's disk, the journal untouched."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from infra.demo.recovery import folder_digest
from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.invariant("I3", "I9")
def test_served_moments_do_not_see_each_other_and_leave_the_journal_alone(place: Place) -> None:
    rng = random.Random(4)
    moments: list[tuple[str, bytes]] = []
    with NbdClient(place.protect()) as client:
        for tag in ("one", "two", "three"):
            for _ in range(40):
                client.write(rng.randrange(0, 60 * MIB, 512), rng.randbytes(8192))
            place.site.checkpoint(tag)
            moments.append((f"tag:{tag}", client.read_all()))
    place.drain()
    place.lose()
    journal = folder_digest(place.bucket)
    with ExitStack() as stack:
        clients = []
        for number, (selector, image) in enumerate(moments):
            served = place.safe.serve(selector, place.folder / f"s{number}")
            stack.callback(served.process.stop)
            clients.append(stack.enter_context(NbdClient(served.uri)))
            assert difference(clients[-1].read(0, MIB), image[:MIB]) == ""
        # The same addresses on each, none aligned to what the journal holds.
        for number, client in enumerate(clients):
            client.write(1536, bytes([number + 1]) * 10240)
            client.zero(32 * MIB + 512, 3 * MIB)
            client.flush()
        for number, (client, (_, image)) in enumerate(zip(clients, moments, strict=True)):
            expected = bytearray(image)
            expected[1536 : 1536 + 10240] = bytes([number + 1]) * 10240
            expected[32 * MIB + 512 : 35 * MIB + 512] = bytes(3 * MIB)
            assert difference(client.read_all(), bytes(expected)) == ""
            # The control: what another one wrote there would show.
            assert difference(client.read(0, MIB), image[:MIB]) != ""
    assert folder_digest(place.bucket) == journal
    for number in range(len(moments)):
        assert not list((place.folder / f"s{number}").iterdir())
    again = place.safe.serve(moments[0][0], place.folder / "again")
    with NbdClient(again.uri) as client:
        assert difference(client.read_all(), moments[0][1]) == ""
    again.process.stop()
