"""Whatever is wrong, the real commands end with a sentence, what to do, and no trace of a stack."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from host_agent.wire.keys import TenantKey
from infra.demo.processes import program, run, tool
from infra.demo.recovery import Safe
from infra.dev_keys import DevSetup, write_dev_setup
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place, made_place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def refused(argv: Sequence[str | Path]) -> str:
    """Run a command that must fail; what it told people. Asserts the manner of failing."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    told = done.stderr.strip()
    assert done.returncode not in (0, -6, -9, -11), f"{words} was accepted: {done.stdout}"
    assert "Traceback" not in done.stdout + told
    assert told, f"{words} said nothing"
    # A sentence, and something to do: no bare word, no number alone.
    assert len(told.split()) >= 6, told
    return told


# -- restoring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lost:
    """A bucket and a key; what the disk held when the site behind them was lost."""

    folder: Path
    bucket: Path
    safe: Safe
    source: bytes


@pytest.fixture(scope="module")
def lost() -> Iterator[Lost]:
    """One loss for all tests that only read."""
    made = Path(tempfile.mkdtemp(prefix="hf-"))
    try:
        with made_place(made, 8 * MIB) as place:
            with NbdClient(place.protect()) as client:
                client.write(0, b"holdfast" * 512)
                client.write(MIB, random.Random(1).randbytes(MIB // 2))
            place.site.checkpoint("kept")
            place.drain()
            yield Lost(place.folder, place.bucket, place.safe, place.lose())
    finally:
        shutil.rmtree(made)


def restore(place: Lost, **changes: str | Path) -> list[str | Path]:
    """An export that would work, with something changed."""
    given: dict[str, str | Path] = {
        "store": place.safe.store,
        "tenant": "acme",
        "key-file": place.safe.key_file,
        "group": "demo",
        "at": "tag:kept",
        "output": place.folder / "unwanted",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    return [tool("holdfast"), "restore", "export", *options]


def test_the_command_that_the_others_are_changed_from_works(lost: Lost) -> None:
    """The control: unchanged, it is not refused."""
    run(restore(lost))
    image = next((lost.folder / "unwanted").rglob("*.raw"))
    assert image.read_bytes()[:4096] == b"holdfast" * 512
    shutil.rmtree(lost.folder / "unwanted")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        pytest.param({"group": "nosuch"}, "nosuch", id="unknown group"),
        pytest.param({"tenant": "other"}, "other", id="unknown tenant"),
        pytest.param({"at": "tag:never"}, "never", id="unknown tag"),
        pytest.param({"at": "seq:987654321"}, "987654321", id="sequence that is not there"),
        pytest.param({"at": "time:yesterday"}, "yesterday", id="no time"),
        pytest.param({"at": "time:2001-01-01T00:00:00Z"}, "2001", id="time before everything"),
        pytest.param({"at": "checkpoint:00000000"}, "00000000", id="unknown checkpoint"),
        pytest.param({"at": "some:thing"}, "some:thing", id="unknown kind of selector"),
        pytest.param({"at": ""}, "", id="empty selector"),
        pytest.param({"group": "../etc"}, "../etc", id="group that leaves its folder"),
        pytest.param({"store": "gopher://x"}, "gopher", id="unknown store"),
        pytest.param({"store": "file:///nonexistent/store"}, "/nonexistent", id="store not there"),
        pytest.param({"key_file": "/nonexistent/key"}, "/nonexistent/key", id="key not there"),
    ],
)
@pytest.mark.invariant("I10")
def test_restore_refuses_what_it_cannot_do(lost: Lost, changes: dict[str, str], names: str) -> None:
    told = refused(restore(lost, **changes))
    assert names in told
    assert not list((lost.folder / "unwanted").rglob("*.raw"))


def _another_key(folder: Path) -> bytes:
    return TenantKey.make("acme").dump()


def _broken_key(folder: Path) -> bytes:
    return (folder / "tenant.key").read_bytes()[:-30]


def _no_key(folder: Path) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(64)


@pytest.mark.parametrize("make", [_another_key, _broken_key, _no_key])
@pytest.mark.invariant("I10", "I16")
def test_restore_refuses_a_wrong_key(lost: Lost, make: Callable[[Path], bytes]) -> None:
    wrong = lost.folder / "wrong.key"
    wrong.write_bytes(make(lost.folder))
    wrong.chmod(0o600)
    assert "key" in refused(restore(lost, key_file=wrong)).lower()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_export_onto_a_full_disk_says_so_and_leaves_no_image(lost: Lost) -> None:
    small = lost.folder / "small"
    small.mkdir()
    run([program("mount"), "-t", "tmpfs", "-o", "size=64k", "none", small])
    try:
        filler = small / "filler"
        filler.write_bytes(bytes(60 * 1024))
        told = refused(restore(lost, output=small / "out"))
        assert "space" in told.lower()
        assert not list(small.rglob("*.raw"))
    finally:
        run([program("umount"), small])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a read-only tmpfs")
def test_export_onto_a_read_only_disk_says_so(lost: Lost) -> None:
    folder = lost.folder / "fixed"
    folder.mkdir()
    run([program("mount"), "-t", "tmpfs", "-o", "ro", "none", folder])
    try:
        assert "read-only" in refused(restore(lost, output=folder / "out")).lower()
    finally:
        run([program("umount"), folder])


@pytest.mark.invariant("I10")
def test_a_flipped_byte_is_named_and_never_becomes_a_wrong_disk(lost: Lost) -> None:
    """What a restore does not need it may pass over; a check of everything names every flip."""
    chain = sorted((lost.bucket / "acme/demo/host1/chain").iterdir())
    victim = max(chain, key=lambda one: one.stat().st_size)
    whole, refusals = victim.read_bytes(), 0
    size = len(whole)
    check: list[str | Path] = [
        tool("holdfast"),
        "restore",
        "list",
        "--store",
        lost.safe.store,
        "--tenant",
        "acme",
    ]
    check += ["--key-file", lost.safe.key_file, "--verify"]
    run(check)
    victim.chmod(0o600)
    try:
        for at in (0, 20, size // 2, size - 200, size - 1):
            victim.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
            told = run(check, allowed=(1,))
            assert f"place {int(victim.name, 16)}" in told.stdout + told.stderr, f"byte {at}"
            done = run(restore(lost), allowed=(0, 1))
            images = list((lost.folder / "unwanted").rglob("*.raw"))
            assert bool(images) == (done.returncode == 0)
            assert all(image.read_bytes() == lost.source for image in images)
            refusals += done.returncode
            shutil.rmtree(lost.folder / "unwanted", ignore_errors=True)
    finally:
        victim.write_bytes(whole)
    assert refusals >= 3


# -- protecting ------------------------------------------------------------------------------------


def _directory(folder: Path) -> Path:
    return folder


def _missing(folder: Path) -> Path:
    return folder / "no-such-disk"


def _qcow2(folder: Path) -> Path:
    image = folder / "image.qcow2"
    run([program("qemu-img"), "create", "-q", "-f", "qcow2", image, "16M"])
    return image


def test_attach_refuses_what_is_no_raw_disk(place: Place) -> None:
    place.protect()
    for make, word in ((_directory, ""), (_missing, "no-such-disk"), (_qcow2, "qcow2")):
        command = place.site.agent_command("attach", "demo", "second", "--disk", make(place.folder))
        assert word in refused(command)
    # It is protected already, under another name.
    refused(place.site.agent_command("attach", "demo", "second", "--disk", place.disk))
    unknown = place.site.agent_command("attach", "nosuch", "disk", "--disk", place.disk)
    assert "nosuch" in refused(unknown)
    assert "nosuch" in refused(place.site.agent_command("checkpoint", "nosuch"))
    # The disk that was there before is unharmed by all of this.
    with NbdClient(place.uri) as client:
        client.write(0, b"unharmed" * 64)
        assert client.read(0, 512) == b"unharmed" * 64
    assert place.drain()["state"] == "recording"


def test_commands_without_an_agent_say_that_it_does_not_run(place: Place) -> None:
    for words in (("status",), ("checkpoint", "demo"), ("attach", "demo", "d", "--disk", "/x")):
        assert "agent" in refused(place.site.agent_command(*words)).lower()


def test_configuration_mistakes_are_named(place: Place) -> None:
    commands: dict[str, list[str | Path]] = {
        "ingest.toml": [tool("holdfast"), "ingest"],
        "agent.toml": [tool("holdfast-agent"), "run"],
    }
    for name, command in commands.items():
        good = place.site.setup.path(name).read_text()
        bad = place.site.setup.path(f"bad-{name}")
        bad.write_text(good.replace("tenant = ", "tenannt = "))
        assert "tenan" in refused([*command, "--config", bad])
        bad.write_text(good + "\n[[[")
        assert bad.name in refused([*command, "--config", bad])
        bad.write_text(good.replace("ca.crt", "no-such.crt"))
        assert "no-such.crt" in refused([*command, "--config", bad])
        assert "missing.toml" in refused([*command, "--config", place.folder / "missing.toml"])


@pytest.mark.parametrize("what", ["other authority", "other tenant"])
@pytest.mark.invariant("I9")
def test_a_foreign_certificate_gets_nothing_stored(place: Place, what: str) -> None:
    """Neither an unknown authority's agent nor another tenant's gets a record in."""
    other = place.folder / "other"
    write_dev_setup(DevSetup(other, tenant="other"), datetime.now(UTC))
    place.site.start_ingest()
    site = place.site.setup
    if what == "other authority":
        for name in ("agent.crt", "agent.key"):
            shutil.copy(other / name, site.path(name))
    else:
        site.path("ingest.toml").write_text(
            site.path("ingest.toml").read_text().replace('"acme"', '"other"')
        )
        place.kill(place.site.ingest)
        place.site.start_ingest()
    place.site.start_host()
    with NbdClient(place.site.attach()) as client:
        client.write(0, b"\x55" * 4096)  # the guest does not notice
        client.flush()
        time.sleep(3)
        now = place.site.status()
        assert client.read(0, 4096) == b"\x55" * 4096
    assert now["state"] != "recording" or now["stored"] < now["head"]
    assert now["failure"] or now["phase"] != "streaming", json.dumps(now)
    assert not [one for one in place.bucket.rglob("chain/*") if one.stat().st_size > 2048]
