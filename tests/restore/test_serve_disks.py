"""Moments served by the real tap: exact from the first read, writable apart, any number at once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nbd import NbdClient, NbdFault
from tests.model.builder import JournalBuilder
from tests.model.workload import Shape, Workload
from tests.restore.replay import moments
from workers.storage.url import open_store

MIB = 1 << 20


class Bucket:
    """A journal in a local folder. The source is not there at all."""

    def __init__(self, folder: Path, seed: int = 5) -> None:
        self.folder = folder
        self.store = folder / "store"
        rng = random.Random(seed)
        self.builder = JournalBuilder(open_store(f"file://{self.store}", create=True), rng=rng)
        Workload(self.builder, Shape({"root": 64, "data": 40}), rng).run()
        self.save_key()

    def save_key(self) -> None:
        """Write the tenant's key file."""
        key = self.folder / "tenant.key"
        key.touch(0o600)
        key.write_bytes(self.builder.tenant_key.dump())

    def digest(self) -> dict[str, bytes]:
        """Every object's bytes."""
        return {str(p): p.read_bytes() for p in self.store.rglob("*") if p.is_file()}

    @contextmanager
    def served(self, selector: str, name: str = "s", *more: str) -> Iterator[dict[str, str]]:
        """The disks' URIs while they are served."""
        words: list[str | Path] = [Path(sys.executable).parent / "holdfast", "restore", "serve"]
        words += ["--store", f"file://{self.store}", "--tenant", "acme", "--json"]
        words += ["--key-file", self.folder / "tenant.key", "--at", selector]
        process = subprocess.Popen(
            [*words, "--socket-dir", self.folder / name, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            said: dict[str, Any] = json.loads(process.stdout.readline())
            assert "disks" in said, said
            yield {disk["name"]: disk["uri"] for disk in said["disks"]}
            process.terminate()
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("fill", ["--fill", "--no-fill"])
def test_every_sector_equals_the_model(bucket: Bucket, fill: str) -> None:
    images = bucket.builder.model.images()
    rng = random.Random(1)
    with bucket.served("latest-write", "s", fill) as uris:
        assert set(uris) == set(images)
        for name, uri in uris.items():
            with NbdClient(uri) as client:
                assert client.size == len(images[name])
                for _ in range(20):
                    at = rng.randrange(client.size // 512) * 512
                    assert client.read(at, 512) == images[name][at : at + 512]
                assert client.read_all() == images[name]


@pytest.mark.invariant("I3")
def test_moments_are_served_side_by_side_and_do_not_touch_each_other(bucket: Bucket) -> None:
    """Two moments, and one of them twice: the same addresses are written differently in each."""
    choices = [m for m in moments(bucket.builder) if m.may_be_chosen and "root" in m.images]
    early, late = choices[len(choices) // 3], choices[-1]
    before = bucket.digest()
    with (
        bucket.served(early.selector, "a") as first,
        bucket.served(late.selector, "b") as second,
        bucket.served(late.selector, "c") as third,
    ):
        clients = [NbdClient(uris["root"]) for uris in (first, second, third)]
        for number, client in enumerate(clients):
            client.write(512, bytes([number]) * 1024)
            client.trim(4096, 1024)
            client.flush()
        for number, (client, moment) in enumerate(zip(clients, (early, late, late), strict=True)):
            expected = bytearray(moment.images["root"])
            expected[512:1536] = bytes([number]) * 1024
            expected[4096:5120] = bytes(1024)
            assert client.read_all() == bytes(expected)
            client.close()
    assert bucket.digest() == before
    with bucket.served(late.selector, "b") as again, NbdClient(again["root"]) as client:
        assert client.read_all() == late.images["root"]


def test_a_guest_may_write_while_the_rest_arrives(tmp_path: Path) -> None:
    bucket = Bucket(tmp_path, seed=6)
    builder = JournalBuilder(
        open_store(f"file://{tmp_path / 'store2'}", create=True), rng=random.Random(9)
    )
    bucket.builder, bucket.store = builder, tmp_path / "store2"
    bucket.save_key()
    builder.generation({"root": 16 * MIB})
    builder.end()
    rng = random.Random(2)
    for _ in range(12):
        builder.write(0, rng.randrange(15) * MIB, rng.randbytes(MIB))
        builder.segment()
    expected = bytearray(builder.model.images()["root"])
    with bucket.served("latest-write") as uris, NbdClient(uris["root"]) as client:
        for _ in range(300):
            at, size = rng.randrange(16 * MIB // 512 - 16) * 512, rng.randrange(1, 16) * 512
            if rng.random() < 0.5:
                data = rng.randbytes(size)
                client.write(at, data)
                expected[at : at + size] = data
            else:
                assert client.read(at, size) == expected[at : at + size]
        assert client.read_all() == bytes(expected)


def test_many_clients_read_at_once(bucket: Bucket) -> None:
    image = bucket.builder.model.images()["root"]
    wrong: list[int] = []

    def read(uri: str, seed: int) -> None:
        rng = random.Random(seed)
        with NbdClient(uri) as client:
            for _ in range(40):
                at = rng.randrange(len(image) // 512) * 512
                if client.read(at, 512) != image[at : at + 512]:
                    wrong.append(at)

    with bucket.served("latest-write") as uris:
        threads = [threading.Thread(target=read, args=(uris["root"], n)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not wrong


@pytest.mark.invariant("I10")
def test_damaged_data_is_a_read_error_and_never_wrong_bytes(bucket: Bucket) -> None:
    builder = bucket.builder
    number = next(n for n, name in builder.model.numbers.items() if name == "root")
    builder.write(number, 0, b"\xaa" * 512)
    builder.segment()
    chain = bucket.store / "acme/web/host1/chain"
    last = max(chain.iterdir())
    data = bytearray(last.read_bytes())
    data[24] ^= 1
    last.chmod(0o600)
    last.write_bytes(data)
    image = builder.model.images()["root"]
    with bucket.served("latest-write", "s", "--no-fill") as uris, NbdClient(uris["root"]) as client:
        with pytest.raises(NbdFault):
            client.read(0, 512)
        assert client.read(2048, 4096) == image[2048:6144]
