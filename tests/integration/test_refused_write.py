"""A6: what the disk refused after interception is never treated as written."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.demo.processes import program, run
from tests.content import difference
from tests.integration.nbd import NbdClient, NbdFault
from tests.integration.place import MIB, Place, made_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_EIO, _ENOSPC = 5, 28


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
    assert difference(image, source) == ""
    assert image[:4096] == image[8192:12288] == b"accepted" * 512


@pytest.fixture
def small_place(folder: Path) -> Iterator[Place]:
    """A disk of 64 MiB on a file system that has room for 16."""
    small = folder / "small"
    small.mkdir()
    run([program("mount"), "-t", "tmpfs", "-o", "size=16m", "none", small])
    try:
        with made_place(folder) as place:
            disk = small / "disk.raw"
            place.disk.rename(folder / "unused.raw")
            with disk.open("xb") as file:
                file.truncate(64 * MIB)
            place.site.disk = disk
            yield place
    finally:
        run([program("umount"), small])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
@pytest.mark.invariant("I1", "I3")
def test_a6_a_full_backing_disk_is_told_to_the_guest_and_followed(small_place: Place) -> None:
    """Writes fail, some halfway; the journal follows the disk, not the requests."""
    place = small_place
    rng = random.Random(6)
    with NbdClient(place.protect()) as client:
        errors = []
        for at in range(0, 24 * MIB, MIB - 512 * 7):
            try:
                client.write(at, rng.randbytes(MIB))
            except NbdFault as refused:
                errors.append(refused.number)
        assert len(errors) > 2
        assert set(errors) == {_ENOSPC}
        client.zero(0, 4 * MIB)  # zeroes need no room
        client.write(MIB, b"room" * 1024)
        client.flush()
    place.site.wait_protected(lambda _now: None)
    place.drain()
    source = place.lose()
    assert difference(place.export("latest-write"), source) == ""


def test_a6_control_a_write_behind_the_taps_back_is_noticed(place: Place) -> None:
    """The comparison of export and source is not blind to a write that was not intercepted."""
    with protect_with_failpoints(place) as client:
        client.write(0, b"accepted" * 512)
    place.drain()
    with place.disk.open("r+b") as file:
        file.write(b"unknown." * 512)
    source = place.lose()
    assert difference(place.export("latest-write"), source) != ""
