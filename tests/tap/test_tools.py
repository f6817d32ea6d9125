"""The programs that people use: qemu-img, qemu-io, nbdinfo, nbdcopy, fio."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from tests.tap.conftest import MakeDisk, OpenStream
from tests.tap.daemon import Attached, Tap
from tests.tap.follow import Follower

SIZE = 8 << 20


def run(*command: str | Path) -> str:
    """Its output; CalledProcessError with it if it fails."""
    done = subprocess.run(
        # nbdinfo guesses at the content with a tool that may be missing, and then prints noise.
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(params=["memory", "storage"])
def attached(request: pytest.FixtureRequest, tap: Tap, make_disk: MakeDisk) -> Attached:
    disk = make_disk(SIZE, folder=request.getfixturevalue(request.param))
    return tap.attach(disk, ring_bytes=64 << 20)


@pytest.fixture
def follower(attached: Attached, follow: OpenStream) -> Follower:
    return follow(attached.stream_socket)


def equal(follower: Follower, attached: Attached) -> None:
    """The copy holds what the disk holds."""
    follower.take()
    if follower.stream.state()["state"] != "recording":
        follower.sync()
    assert follower.image() == attached.path.read_bytes()


def test_nbdinfo(attached: Attached) -> None:
    told = json.loads(run("nbdinfo", "--json", attached.uri))["exports"][0]
    assert told["export-size"] == SIZE
    assert told["can_multi_conn"]
    assert told["can_flush"]
    assert told["can_fua"]
    assert told["can_trim"]
    assert told["can_zero"]
    assert not told["is_read_only"]
    assert told["block_size_minimum"] == 512
    assert "base:allocation" in told["contexts"]
    extents = json.loads(run("nbdinfo", "--map", "--json", attached.uri))
    assert sum(extent["length"] for extent in extents) == SIZE
    assert run("nbdinfo", "--size", attached.uri).strip() == str(SIZE)


@pytest.mark.invariant("I1", "I4")
def test_nbdcopy_there_and_back(attached: Attached, follower: Follower, memory: Path) -> None:
    source, back = memory / "source.img", memory / "back.img"
    rng = random.Random(1)
    content = b"".join(
        rng.choice([bytes(64 << 10), rng.randbytes(64 << 10)]) for _ in range(SIZE >> 16)
    )
    source.write_bytes(content)
    run("nbdcopy", "--connections=4", "--requests=16", source, attached.uri)
    assert attached.path.read_bytes() == content
    run("nbdcopy", attached.uri, back)
    assert back.read_bytes() == content
    equal(follower, attached)


@pytest.mark.qemu
@pytest.mark.invariant("I1", "I4")
def test_qemu_img(attached: Attached, follower: Follower, memory: Path) -> None:
    source = memory / "source.img"
    source.write_bytes(random.Random(2).randbytes(SIZE // 2) + bytes(SIZE // 2))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, attached.uri)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, attached.uri)
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", attached.uri))
    assert told["virtual-size"] == SIZE
    run("qemu-img", "map", "-f", "raw", attached.uri)
    equal(follower, attached)


@pytest.mark.qemu
@pytest.mark.invariant("I1", "I4")
def test_qemu_io(attached: Attached, follower: Follower) -> None:
    run(
        "qemu-io", "-f", "raw", attached.uri,
        "-c", "write -P 0x11 0 1M", "-c", "write -P 0x22 -f 512k 4k", "-c", "write -z 64k 64k",
        "-c", "write -z -u 128k 64k", "-c", "discard 192k 64k", "-c", "flush",
        "-c", "aio_write -P 0x33 1M 64k", "-c", "aio_write -P 0x44 1M 512", "-c", "aio_flush",
        "-c", "read -P 0x22 512k 4k", "-c", "read -P 0 64k 192k", "-c", "read -P 0x11 0 64k",
        "-c", "write -P 0x55 8388096 512", "-c", "read -P 0x55 8388096 512",
    )  # fmt: skip
    equal(follower, attached)
    assert any(one.event.flags & 1 for one in follower.taken)  # FUA


@pytest.mark.invariant("I1", "I4")
def test_fio_verifies(attached: Attached, follower: Follower, memory: Path) -> None:
    common = [
        "--ioengine=nbd", f"--uri={attached.uri}", "--rw=randrw", "--bsrange=512-64k",
        "--bs_unaligned=0", "--blockalign=512", f"--size={SIZE}", "--iodepth=32", "--fsync=16",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--randseed=7",
        "--output-format=json", f"--output={memory}/fio.json",
    ]  # fmt: skip
    run("fio", "--name=v", f"--aux-path={memory}", *common)
    told = json.loads((memory / "fio.json").read_text())["jobs"][0]
    assert told["error"] == 0
    assert told["write"]["total_ios"] > 100
    equal(follower, attached)


@pytest.mark.invariant("I1")
def test_a_file_system_inside(attached: Attached, follower: Follower, memory: Path) -> None:
    """Made with the disk's own tools over the export, checked on the copy that the ring gives."""
    image = memory / "fs.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    tree = memory / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"file{number}").write_bytes(random.Random(number).randbytes(number * 777))
    run("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", tree, image)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, attached.uri)
    follower.take()
    copy = memory / "copy.img"
    copy.write_bytes(follower.image())
    run("e2fsck", "-fn", copy)
    run("debugfs", "-R", f"dump file19 {memory / 'out'}", copy)
    assert (memory / "out").read_bytes() == (tree / "file19").read_bytes()
