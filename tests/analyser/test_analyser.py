"""The analyser on what real tools write, and on noise: named rightly, or "unknown"."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from host_agent.analyser.analyser import LOOKS_PER_BATCH, SUSPICION_BLOCKS_MIN, Analyser
from host_agent.wire.record import RECORD, Op, Records

MIB = 1 << 20
MAKERS = {
    "ext4": (64, ["mkfs.ext4", "-q", "-F"], "linux"),
    "ext2": (64, ["mkfs.ext2", "-q", "-F"], "linux"),
    "xfs": (320, ["mkfs.xfs", "-q", "-f"], "linux"),
    "ntfs": (64, ["mkfs.ntfs", "-q", "-F", "-f"], "windows"),
    "fat32": (64, ["mkfs.vfat", "-F", "32"], "unknown"),
    "btrfs": (128, ["mkfs.btrfs", "-q", "-f"], "linux"),
    "swap": (64, ["mkswap", "-q"], "linux"),
}


def make_image(path: Path, kind: str) -> bytes:
    """The first 2 MiB of an image with that file system, made by its own tool."""
    size, command, _ = MAKERS[kind]
    with path.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    with path.open("rb") as file:
        return file.read(2 * MIB)


def batch(writes: list[tuple[int, bytes]], op: Op = Op.WRITE, time: int = 10**18) -> Records:
    """Records of writes (offset, data) to disk 0."""
    records = np.zeros(len(writes), RECORD)
    records["seq"] = np.arange(1, len(writes) + 1)
    records["time"] = time
    records["op"] = op
    records["offset"] = [offset for offset, _ in writes]
    records["length"] = records["payload_length"] = [len(data) for _, data in writes]
    return records


def feed(analyser: Analyser, writes: list[tuple[int, bytes]], piece: int = 4096) -> None:
    """Feed the writes in pieces of so many bytes, a batch of 256 at a time."""
    pieces = [
        (offset + at, data[at : at + piece])
        for offset, data in writes
        for at in range(0, len(data), piece)
    ]
    for at in range(0, len(pieces), 16):
        part = pieces[at : at + 16]
        analyser.feed(batch(part), b"".join(data for _, data in part))


def kinds(analyser: Analyser) -> set[str]:
    contains = analyser.report()[0]["contains"]
    assert isinstance(contains, list)
    return {entry["kind"] for entry in contains}


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("piece", [512 * 8, 256 * 1024])
def test_a5_real_file_systems_are_named(tmp_path: Path, kind: str, piece: int) -> None:
    analyser = Analyser()
    feed(analyser, [(0, make_image(tmp_path / "image", kind))], piece)
    assert kinds(analyser) == {kind}
    assert analyser.report()[0]["system"] == MAKERS[kind][2]


@pytest.mark.parametrize("label", ["dos", "gpt"])
def test_a5_a_partitioned_disk_names_table_and_volume(tmp_path: Path, label: str) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    script = f"label: {label}\nstart=4096, size=65536\n"
    subprocess.run(
        ["sfdisk", "-q", str(disk)],
        input=script.encode(),
        check=True,
        capture_output=True,
    )
    analyser = Analyser()
    table = disk.read_bytes()[:MIB]
    feed(analyser, [(0, table), (2 * MIB, make_image(tmp_path / "volume", "ext4"))], 65536)
    assert {"dos": "mbr", "gpt": "gpt"}[label] in kinds(analyser)
    contains = analyser.report()[0]["contains"]
    assert isinstance(contains, list)
    [volume] = [entry for entry in contains if entry["kind"] == "ext4"]
    assert (volume["volume_offset"], volume["evidence_offset"]) == (2 * MIB, 2 * MIB + 1080)


def test_a5_noise_is_unknown() -> None:
    analyser = Analyser()
    feed(analyser, [(0, np.random.default_rng(5).bytes(16 * MIB))], 65536)
    report = analyser.report()[0]
    assert report["contains"] == []
    assert report["system"] == "unknown"


def test_a_magic_number_alone_is_no_file_system() -> None:
    """The negative control of the checks beside the magic numbers."""
    block = bytearray(os.urandom(4096))
    block[1024 + 56 : 1024 + 58] = b"\x53\xef"
    block[1024 + 24 : 1024 + 28] = b"\xff" * 4
    block[0:4] = b"XFSB"
    block[4:8] = b"\xff" * 4
    analyser = Analyser()
    feed(analyser, [(0, bytes(block))])
    assert kinds(analyser) == set()


def test_encryption_is_suspected_of_ciphertext_and_not_of_text_or_deflate() -> None:
    rng = np.random.default_rng(1)
    words = [rng.bytes(6).hex() for _ in range(5000)]
    text = " ".join(words[i] for i in rng.integers(0, 5000, 200_000)).encode()[: 2 * MIB]
    packed = zlib.compress(text, 6) * 3
    suspicion = {}
    for name, data in (("cipher", rng.bytes(MIB)), ("text", text), ("deflate", packed[:MIB])):
        analyser = Analyser()
        feed(analyser, [(0, data[: len(data) // 4096 * 4096])])
        suspicion[name] = analyser.report()[0]["encryption_suspicion"]
    assert isinstance(suspicion["cipher"], float)
    assert suspicion["cipher"] > 0.95
    assert suspicion["text"] == 0.0
    assert isinstance(suspicion["deflate"], float)
    assert suspicion["deflate"] < suspicion["cipher"]


def test_nothing_is_said_of_encryption_from_few_blocks() -> None:
    analyser = Analyser()
    feed(analyser, [(0, os.urandom(4096))])
    report = analyser.report()[0]
    assert report["judged_blocks"] == 1 < SUSPICION_BLOCKS_MIN
    assert report["encryption_suspicion"] is None


def test_the_change_rate_is_of_the_last_minute() -> None:
    analyser = Analyser()
    second = 10**9
    for at in range(120):
        analyser.feed(batch([(0, bytes(4096))], time=at * second), bytes(4096))
    assert analyser.report()[0]["written_bytes_per_second"] == 4096
    assert analyser.report()[0]["written_bytes"] == 120 * 4096


def test_a_batch_costs_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(Analyser, "_look", lambda *_: looks.append(1))
    many = [(0, bytes(512))] * 5000
    Analyser().feed(batch(many), b"".join(data for _, data in many))
    assert len(looks) == LOOKS_PER_BATCH


def test_sync_blocks_tell_of_file_systems_but_are_no_change(tmp_path: Path) -> None:
    data = make_image(tmp_path / "image", "ext4")[:65536]
    analyser = Analyser()
    analyser.feed(batch([(0, data)], Op.SYNC), data)
    report = analyser.report()[0]
    assert kinds(analyser) == {"ext4"}
    assert report["written_bytes"] == 0
    assert report["judged_blocks"] == 0
