"""What may be attached, by whom, and how often; sizes that change."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_agent.wire.tapctl import TapRefused
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.daemon import RING_BYTES, Stream, Tap
from tests.tap.follow import Follower

SIZE = 1 << 20


def refused(tap: Tap, path: Path, **options: object) -> TapRefused:
    """Attach, which must fail."""
    with pytest.raises(TapRefused) as caught:
        tap.attach(path, **options)  # type: ignore[arg-type]
    assert caught.value.hint, caught.value.message
    return caught.value


def test_attaching_again_answers_the_same(tap: Tap, make_disk: MakeDisk) -> None:
    disk = make_disk(SIZE)
    first = tap.attach(disk)
    assert tap.attach(disk) == first
    assert first.size == SIZE
    assert first.uri.startswith("nbd+unix:///d?socket=")
    group = tap.group()
    assert [d["disk"] for d in group["disks"]] == ["d"]


def test_another_disk_under_a_name_that_is_taken(tap: Tap, make_disk: MakeDisk) -> None:
    tap.attach(make_disk(SIZE, "a.img"))
    refused(tap, make_disk(SIZE, "b.img"))


@pytest.mark.parametrize("kind", ["qcow2", "qed", "vmdk", "vhdx", "vpc", "vdi"])
def test_image_formats_are_refused_by_name(tap: Tap, memory: Path, kind: str) -> None:
    path = memory / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, "8M"], check=True)
    error = refused(tap, path)
    assert error.code == "image_format"
    assert kind in error.message


def test_a_guest_that_writes_an_image_header_stays_attached(
    start_tap: StartTap, make_disk: MakeDisk
) -> None:
    """It is the guest's right; the disk is raw and stays so, over a restart too."""
    disk = make_disk(SIZE)
    tap = start_tap()
    attached = tap.attach(disk)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"QFI\xfb" + bytes(508))
    tap.stop()
    tap = start_tap()
    with nbd.Nbd(tap.attach(disk).nbd_socket, "d") as client:
        assert client.read(0, 512)[:4] == b"QFI\xfb"


def test_what_cannot_be_a_disk(tap: Tap, memory: Path, make_disk: MakeDisk) -> None:
    assert refused(tap, memory / "missing").code == "disk_not_found"
    refused(tap, memory)
    refused(tap, Path("relative.img"))
    assert refused(tap, make_disk(0)).code == "disk_empty"
    refused(tap, make_disk(1000))
    refused(tap, Path("/dev/null"))


def test_names_and_sizes_are_checked(tap: Tap, make_disk: MakeDisk) -> None:
    disk = make_disk(SIZE)
    for name in ("", "A", "../x", "x" * 64, "a/b", ".hidden"):
        with pytest.raises(TapRefused):
            tap.attach(disk, group=name)
        with pytest.raises(TapRefused):
            tap.attach(disk, disk=name)
    for option in (
        {"ring_bytes": 0},
        {"ring_bytes": 1 << 60},
        {"cache": "maybe"},
        {"hold_ms_max": -1},
    ):
        with pytest.raises(TapRefused):
            tap.attach(disk, **option)
    assert not tap.call("status")["groups"]


@pytest.mark.root
def test_a_disk_that_can_only_be_read(tap: Tap, memory: Path, make_disk: MakeDisk) -> None:
    folder = memory / "ro"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    try:
        disk = make_disk(SIZE, folder=folder)
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert refused(tap, disk).code == "disk_read_only"
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.invariant("I8")
def test_two_taps_do_not_share_a_disk(start_tap: StartTap, make_disk: MakeDisk) -> None:
    disk = make_disk(SIZE)
    first, second = start_tap("one"), start_tap("two")
    first.attach(disk)
    error = refused(second, disk)
    assert error.code == "disk_in_use"
    assert error.retryable
    first.call("detach", group="g", disk="d")
    second.attach(disk)


@pytest.mark.invariant("I8")
@pytest.mark.qemu
def test_qemu_keeps_off_a_disk_that_is_attached(tap: Tap, make_disk: MakeDisk) -> None:
    disk = make_disk(SIZE)
    tap.attach(disk)
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "lock" in done.stderr + done.stdout
    tap.call("detach", group="g", disk="d")
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", disk], check=True, capture_output=True
    )


def _wait_for_greeting(socket: Path) -> None:
    """qemu-nbd has opened its disk when it greets a client."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            assert nbd.Wire(socket).take(8) == b"NBDMAGIC"
        except (OSError, nbd.ConnectionEnded):
            time.sleep(0.01)
        else:
            return
    raise AssertionError("qemu-nbd does not greet")


@pytest.mark.invariant("I8")
@pytest.mark.qemu
def test_the_tap_keeps_off_a_disk_that_qemu_has(
    tap: Tap, make_disk: MakeDisk, memory: Path
) -> None:
    disk = make_disk(SIZE)
    socket = memory / "q.sock"
    server = subprocess.Popen(
        ["qemu-nbd", "-f", "raw", "-k", socket, "--persistent", disk], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_greeting(socket)
        assert refused(tap, disk).code == "disk_in_use"
    finally:
        server.terminate()
        server.wait(10)
    tap.attach(disk)


@pytest.mark.invariant("I8")
def test_a_plain_lock_is_respected(tap: Tap, make_disk: MakeDisk) -> None:
    disk = make_disk(SIZE)
    with disk.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refused(tap, disk).code == "disk_in_use"
    tap.attach(disk)


def test_detach(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    first = tap.attach(make_disk(SIZE, "a.img"), disk="a")
    tap.attach(make_disk(SIZE, "b.img"), disk="b")
    follower = follow(first.stream_socket)
    client = nbd.Nbd(first.nbd_socket, "b")
    with pytest.raises(TapRefused) as caught:
        tap.call("detach", group="g", disk="b")
    assert caught.value.hint
    client.write(0, b"x" * 512)
    tap.call("detach", group="g", disk="b", force=True)
    with pytest.raises((nbd.ConnectionEnded, OSError)):
        client.write(0, b"y" * 512)
    (*_, last) = follower.take()
    assert (last.op, last.event.disk) == (21, 0xFFFF)
    assert (last.event.body or {})["name"] == "b"
    assert set(follower.model.disks) == {"a"}
    with pytest.raises(nbd.ProtocolBroken):
        nbd.Nbd(first.nbd_socket, "b")
    with pytest.raises(TapRefused):
        tap.call("detach", group="g", disk="b")


def test_a_disk_that_joins_is_read_and_others_are_not(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    first = tap.attach(make_disk(SIZE, "a.img"), disk="a")
    follower = follow(first.stream_socket)
    disk = make_disk(SIZE, "b.img")
    disk.write_bytes(b"j" * SIZE)
    second = tap.attach(disk, disk="b")
    state = follower.stream.state()
    assert state["state"] != "recording"
    assert state["cause"] == "disk_added"
    follower.taken.clear()
    follower.sync()
    assert follower.image("b") == disk.read_bytes()
    begin = next(one for one in follower.taken if one.op == 16).event.body or {}
    assert begin["cause"] == "disk_added"
    assert {entry["name"] for entry in begin["disks"]} == {"a", "b"}
    read = {one.event.disk for one in follower.taken if one.op in (6, 7)}
    assert read == {second.number}


def test_sizes_that_change_are_followed(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """A RESIZE record at the next connect; clients that are there keep the size that they know."""
    disk = make_disk(SIZE)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    old = nbd.Nbd(attached.nbd_socket, "d")
    old.write(SIZE - 512, b"e" * 512)
    os.truncate(disk, 2 * SIZE)
    new = nbd.Nbd(attached.nbd_socket, "d")
    assert new.size == 2 * SIZE
    new.write(2 * SIZE - 512, b"n" * 512)
    old.write(0, b"o" * 512)
    taken = follower.take()
    resize = next(one for one in taken if one.op == 5)
    assert resize.event.offset == 2 * SIZE
    assert resize.event.disk == attached.number
    if follower.stream.state()["state"] != "recording":
        follower.sync()
    assert follower.image() == disk.read_bytes()
    assert len(follower.image()) == 2 * SIZE


def test_a_disk_that_shrinks(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    disk = make_disk(SIZE)
    disk.write_bytes(b"s" * SIZE)
    attached = tap.attach(disk)
    follower = follow(attached.stream_socket)
    os.truncate(disk, SIZE // 2)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        assert client.size == SIZE // 2
        assert client.call(nbd.WRITE, SIZE // 2, data=b"x" * 512).error == nbd.ENOSPC
    os.truncate(disk, SIZE)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        assert client.read(SIZE - 512, 512) == bytes(512)
        client.write(SIZE - 4096, b"x" * 512)
    follower.take()
    if follower.stream.state()["state"] != "recording":
        follower.sync()
    assert follower.image() == disk.read_bytes()


@pytest.mark.invariant("I12")
def test_a_disk_of_64_tib(tap: Tap, make_disk: MakeDisk) -> None:
    """Sparse: the ends can be written, and a sync costs what is there, not what could be."""
    size = 64 << 40
    disk = make_disk(size)
    attached = tap.attach(disk)
    assert attached.size == size
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        assert client.size == size
        client.write(size - 512, b"z" * 512)
        client.write(1 << 40, b"m" * 4096)
        client.trim(0, 0xFFFFFE00)
        client.zero(32 << 40, 0xFFFFFE00)
        assert client.read(size - 1024, 1024) == bytes(512) + b"z" * 512
        assert client.status((1 << 40) - 4096, 12288)[1][0] == 4096
    follower = Follower(Stream(attached.stream_socket), replays=False)
    follower.sync()
    assert follower.seq < 40_000
    read = [one.event for one in follower.taken if one.op in (6, 7)]
    assert sum(one.length for one in read) == size
    assert sum(len(one.data) for one in read) < 1 << 20
    follower.stream.close()


def test_many_disks_and_groups(tap: Tap, make_disk: MakeDisk) -> None:
    for group in range(6):
        for disk in range(3):
            path = make_disk(64 << 10, f"{group}-{disk}.img")
            tap.attach(path, group=f"g{group}", disk=f"d{disk}", ring_bytes=RING_BYTES // 2)
    groups = tap.call("status")["groups"]
    assert len(groups) == 6
    assert all(len(group["disks"]) == 3 for group in groups)


def test_the_ring_is_the_taps_alone(tap: Tap, make_disk: MakeDisk, follow: OpenStream) -> None:
    """The agent's descriptor can only be read; the file is nobody else's."""
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    descriptor = follower.stream.descriptor
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    with pytest.raises(OSError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(OSError):
        os.ftruncate(descriptor, 0)


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, storage: Path, make_disk: MakeDisk) -> Iterator[Path]:
    """A loop device with sectors of this size."""
    backing = make_disk(SIZE, folder=storage)
    made = subprocess.run(
        ["losetup", "--find", "--show", f"--sector-size={request.param}", backing],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        yield Path(made)
    finally:
        subprocess.run(["losetup", "--detach", made], check=True)


@pytest.mark.root
@pytest.mark.invariant("I1", "I4")
def test_a_block_device(tap: Tap, device: Path, follow: OpenStream) -> None:
    """Driven in its own sectors; what is smaller is refused, not half done."""
    attached = tap.attach(device)
    assert attached.size == SIZE
    follower = follow(attached.stream_socket)
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        least = client.block_bytes[0]
        rng = random.Random(least)
        for _ in range(60):
            count = rng.randint(1, 16)
            at = rng.randrange(SIZE // least - count) * least
            command = rng.choice([nbd.WRITE, nbd.WRITE, nbd.TRIM, nbd.ZERO])
            data = rng.randbytes(count * least) if command == nbd.WRITE else b""
            assert client.call(command, at, count * least, data).error == 0
        client.flush()
        assert client.call(nbd.READ, least // 2, least).error == nbd.EINVAL
        assert not any(flags & 2 for _, flags in client.status(0, SIZE))
        whole = client.read(0, SIZE)
    follower.take()
    assert follower.stream.state()["state"] == "recording"
    assert follower.image() == whole
    tap.call("detach", group="g", disk="d", force=True)
    assert device.read_bytes() == whole


def test_a_group_ends_when_its_last_disk_has_gone(tap: Tap, make_disk: MakeDisk) -> None:
    tap.attach(make_disk(SIZE))
    ring_bytes = sum(path.stat().st_size for path in tap.ring_dir.iterdir())
    assert ring_bytes >= RING_BYTES
    with pytest.raises(TapRefused) as caught:
        tap.call("close", group="g")
    assert caught.value.code == "group_has_disks"
    tap.call("detach", group="g", disk="d")
    tap.call("close", group="g")
    assert not tap.call("status")["groups"]
    assert not list(tap.ring_dir.iterdir()), "its memory is given back"
    # The name is free again.
    assert tap.attach(make_disk(SIZE, "other.img")).size == SIZE
