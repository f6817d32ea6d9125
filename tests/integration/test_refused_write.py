"""A6: what the disk refused after interception is never treated as written."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.integration.nbd import NbdClient, NbdFault
from tests.integration.place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
_EIO = 5


def tap_asks(place: Place, **request: Any) -> dict[str, Any]:
    """One request on the group's control socket of the tap."""
    path = place.site.setup.path("run") / "demo.stream"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(10)
        channel.connect(str(path))
        channel.send(json.dumps({"id": 1, **request}).encode())
        answer = json.loads(channel.recv(65536))
    assert answer["ok"], answer
    return dict(answer)


def protect_with_failpoints(place: Place) -> NbdClient:
    place.site.start_ingest()
    place.site.start_tap("--failpoints")
    place.site.start_agent()
    client = NbdClient(place.site.attach())
    place.site.wait_protected(lambda _now: None)
    return client


@pytest.mark.invariant("I1", "I3")
def test_a6_a_refused_write_is_the_guests_error_and_never_in_the_journal(place: Place) -> None:
    with protect_with_failpoints(place) as client:
        client.write(0, b"accepted" * 512)
        tap_asks(place, do="failpoint", disk="disk", op="write", error="EIO", after=0, count=1)
        with pytest.raises(NbdFault) as refused:
            client.write(4096, b"refused!" * 512)
        assert refused.value.number == _EIO
        client.write(8192, b"accepted" * 512)
        assert client.read(4096, 4096) == bytes(4096)
    place.site.wait_protected(lambda _now: None)
    place.drain()
    source = place.lose()
    image = place.export("latest-write")
    assert b"refused!" not in image
    assert image == source
    assert image[:4096] == image[8192:12288] == b"accepted" * 512


@pytest.mark.invariant("I1", "I3")
def test_a6_a_write_that_failed_halfway_is_read_again_from_the_disk(place: Place) -> None:
    """The disk holds half of a refused write; the journal follows the disk, not the request."""
    with protect_with_failpoints(place) as client:
        client.write(0, b"before.." * 1024)
        tap_asks(
            place,
            do="failpoint",
            disk="disk",
            op="write",
            error="EIO",
            after=0,
            count=1,
            short=4096,
        )
        with pytest.raises(NbdFault):
            client.write(0, b"halfway!" * 1024)
        half = client.read(0, 8192)
    assert half == b"halfway!" * 512 + b"before.." * 512
    place.site.wait_protected(lambda _now: None)
    place.drain()
    source = place.lose()
    assert source[:8192] == half
    assert place.export("latest-write") == source


def test_a6_control_a_write_behind_the_taps_back_is_noticed(place: Place) -> None:
    """The comparison of export and source is not blind to a write that was not intercepted."""
    with protect_with_failpoints(place) as client:
        client.write(0, b"accepted" * 512)
    place.drain()
    with place.disk.open("r+b") as file:
        file.write(b"unknown." * 512)
    source = place.lose()
    assert place.export("latest-write") != source
