"""Disks in memory, which the tap reads and writes by copies: as if it used the ordinary calls."""

from __future__ import annotations

import os
from pathlib import Path

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream
from tests.tap.daemon import Tap

SIZE = 1 << 20
BLOCK = 4096
LAST = SIZE - BLOCK


def use_all(client: nbd.Nbd) -> None:
    """Writes and reads each block, some of them often: the tap knows all of it by then."""
    for _ in range(20):
        client.write(LAST, b"y" * BLOCK)
    for at in range(0, SIZE, BLOCK):
        client.write(at, b"x" * BLOCK)
        assert client.read(at, BLOCK) == b"x" * BLOCK


def blocks(path: Path) -> int:
    """Bytes that the file takes."""
    return path.stat().st_blocks * 512


def test_a_file_that_somebody_cuts_is_an_error_and_not_the_end(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    path = make_disk(SIZE)
    path.write_bytes(b"w" * SIZE)
    attached = tap.attach(path)
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    use_all(client)
    assert str(path) in Path(f"/proc/{tap.pid}/maps").read_text(), "else nothing is proved here"
    os.truncate(path, SIZE // 2)
    assert client.call(nbd.READ, LAST, BLOCK).error == nbd.EIO
    assert client.read(0, BLOCK) == b"x" * BLOCK
    client.write(LAST, b"z" * BLOCK)  # as with any file: it grows again
    assert client.read(LAST, BLOCK) == b"z" * BLOCK
    assert path.read_bytes()[LAST:] == b"z" * BLOCK
    follower.take()
    newest = follower.taken[-1].event
    assert (newest.offset, newest.data) == (LAST, b"z" * BLOCK)


def test_reading_takes_no_memory(tap: Tap, make_disk: MakeDisk) -> None:
    path = make_disk(SIZE)
    client = nbd.Nbd(tap.attach(path).nbd_socket, "d")
    for _ in range(20):
        assert client.read(0, SIZE) == bytes(SIZE)
        assert client.read(LAST, BLOCK) == bytes(BLOCK)
    assert blocks(path) == 0


def test_what_a_guest_gave_back_stays_given_back(tap: Tap, make_disk: MakeDisk) -> None:
    path = make_disk(SIZE)
    path.write_bytes(b"w" * SIZE)
    client = nbd.Nbd(tap.attach(path).nbd_socket, "d")
    use_all(client)
    assert client.call(nbd.TRIM, 0, SIZE).error == 0
    assert blocks(path) == 0
    for at in range(0, SIZE, BLOCK):
        assert client.read(at, BLOCK) == bytes(BLOCK)
    assert blocks(path) == 0


def test_others_see_what_was_written_and_are_seen(tap: Tap, make_disk: MakeDisk) -> None:
    path = make_disk(SIZE)
    path.write_bytes(b"w" * SIZE)
    client = nbd.Nbd(tap.attach(path).nbd_socket, "d")
    use_all(client)
    client.write(512, b"1" * 512)
    with path.open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 1536, 0) == b"x" * 512 + b"1" * 512 + b"x" * 512
        os.pwrite(file.fileno(), b"2" * 512, 1024)
    assert client.read(512, 1024) == b"1" * 512 + b"2" * 512
