"""The main job as a program sees it: one JSON object, an exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.demo.machine import can_mount
from infra.demo.processes import processes_that_name

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("demo")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demonstration may make its own folder; a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="hd-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infra.demo", "--json", *words],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, the object on standard output, and what people read."""
    try:
        out, err = process.communicate(timeout=560)
    finally:
        process.kill()
        process.wait()
    lines = out.splitlines()
    assert len(lines) == 1, out
    content = json.loads(lines[0])
    assert isinstance(content, dict)
    return process.returncode, content, err


def ways() -> list[Any]:
    cannot = can_mount()
    mounted = pytest.mark.skipif(cannot is not None, reason=f"cannot mount: {cannot}")
    return [
        pytest.param("mounted", marks=[mounted, pytest.mark.root]),
        pytest.param("guest", marks=pytest.mark.qemu),
    ]


@pytest.mark.parametrize("way", ways())
@pytest.mark.invariant("I2", "I3", "I4")
def test_the_demonstration_recovers_everything(folder: Path, way: str) -> None:
    code, result, told = end(start(folder, "--machine", way))
    assert result["recovered"] is True, told[-3000:]
    assert code == 0
    assert result["machine"] == way
    assert result["failed"] == []
    assert all(check["passed"] for check in result["checks"])
    restored = result["restore"]
    assert restored["transactions"] >= restored["acknowledged_before_checkpoint"] > 0
    assert result["rpo"]["lost_at_the_moment_of_damage"] == 0
    assert list(folder.iterdir()) == []


#: What must fail where the checkpoint is too late, or the stranger is the owner.
BROKEN = {
    "none of the damage is there",
    "the other tenant is answered as if none of them existed",
    "none of them is in the other tenant's lists",
    "the other tenant's certificate opens nothing at the ingest door",
    "the other tenant's certificate opens nothing at the restore door",
    "nothing that was written on the one's disk is in what the other was given",
}


def test_neither_a_late_checkpoint_nor_an_insider_goes_unnoticed(folder: Path) -> None:
    """The control: the same run with both mechanisms broken must say so."""
    code, result, told = end(start(folder, "--late-checkpoint", "--insider"))
    assert result["recovered"] is False
    assert code != 0
    assert set(result["failed"]) >= BROKEN, told[-3000:]
    assert "NOT recovered" in told
    assert list(folder.iterdir()) == []


def test_stopping_it_midway_leaves_nothing(folder: Path) -> None:
    process = start(folder)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/acme-host/run/tap.sock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    code, result, _ = end(process)
    assert code != 0
    assert result["recovered"] is False
    assert "SIGINT" in result["error"]["message"]
    assert list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert not processes_that_name(folder)
