"""Serving as a process: starts, prints, ends in order, leaves nothing behind, and names what
fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.builder import JournalBuilder
from tests.model.workload import Shape, Workload
from workers.storage.url import open_store

ROOT = Path(__file__).parents[2]
Start = Callable[..., subprocess.Popen[str]]


class Served:
    """A bucket, and the program that stands in for the tap."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        url = f"file://{folder / 'store'}"
        rng = random.Random(5)
        self.builder = JournalBuilder(open_store(url, create=True), rng=rng)
        Workload(self.builder, Shape({"root": 64, "data": 40}), rng).run()
        key = folder / "tenant.key"
        key.touch(0o600)
        key.write_bytes(self.builder.tenant_key.dump())
        self.program = folder / "holdfast-tap"
        self.program.write_text(
            f"#!/bin/sh\nexec {sys.executable} -m tests.restore.tap_program $@\n"
        )
        self.program.chmod(0o755)
        self.words = ["--store", url, "--tenant", "acme", "--key-file", str(key), "--json"]
        self.words += ["--group", "web", "--at", "latest-write"]

    def start(self, directory: Path, manner: str = "well", *more: str) -> subprocess.Popen[str]:
        """`holdfast restore serve` with that tap."""
        program = Path(sys.executable).parent / "holdfast"
        return subprocess.Popen(
            [program, "restore", "serve", *self.words, "--socket-dir", directory, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "HOLDFAST_TAP": str(self.program),
                "HOLDFAST_TAP_DOUBLE": manner,
                "PYTHONPATH": str(ROOT),
            },
        )


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


@pytest.fixture
def start(served: Served) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        started.append(served.start(*arguments))  # type: ignore[arg-type]
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def taps_of(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in path.read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_it_says_where_the_disks_are_and_ends_in_order(
    start: Start, tmp_path: Path, ending: signal.Signals
) -> None:
    sockets = tmp_path / "s"
    process = start(sockets)
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert [disk["name"] for disk in said["disks"]] == ["root", "data"]
    assert said["disks"][0]["uri"].startswith("nbd+unix:///root?socket=")
    assert said["point"]["seq"]
    taps = taps_of(process)
    assert len(taps) == 1
    assert (sockets / "scratch/root.raw").exists()
    assert sockets.stat().st_mode & 0o777 == 0o700
    process.send_signal(ending)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert rest == ""
    assert is_gone(taps[0])
    assert list(sockets.iterdir()) == []


def test_a_second_server_needs_its_own_folder(start: Start, tmp_path: Path) -> None:
    first = start(tmp_path / "s")
    assert first.stdout is not None
    first.stdout.readline()
    second = start(tmp_path / "s")
    out, _ = second.communicate(timeout=20)
    assert (second.returncode, json.loads(out)["error"]) == (1, "target_exists")
    assert first.poll() is None
    third = start(tmp_path / "t")
    assert third.stdout is not None
    assert json.loads(third.stdout.readline())["disks"]


def test_the_tap_ends_with_a_server_that_is_killed(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path / "s")
    assert process.stdout is not None
    process.stdout.readline()
    taps = taps_of(process)
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(taps[0]))


def test_a_tap_that_dies_ends_the_server_by_name(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path / "s")
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(taps_of(process)[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, json.loads(out)["error"]) == (1, "tap_failed")
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(
    ("manner", "error", "text"),
    [("dies", "tap_failed", "no room"), ("refuses", "no_space", "No room")],
)
def test_a_tap_that_cannot_is_named(
    start: Start, tmp_path: Path, manner: str, error: str, text: str
) -> None:
    process = start(tmp_path / "s", manner)
    out, _ = process.communicate(timeout=20)
    said = json.loads(out)
    assert (process.returncode, said["error"]) == (1, error)
    assert text in said["message"]
    assert list((tmp_path / "s").iterdir()) == []


def test_no_tap_at_all_is_named(start: Start, served: Served, tmp_path: Path) -> None:
    served.program.unlink()
    out, _ = start(tmp_path / "s").communicate(timeout=20)
    assert json.loads(out)["error"] == "tap_missing"
    assert "HOLDFAST_TAP" in json.loads(out)["hint"]


def test_a_path_too_long_for_sockets_is_named(start: Start, tmp_path: Path) -> None:
    out, _ = start(tmp_path / ("s" * 100)).communicate(timeout=20)
    assert json.loads(out)["error"] == "tap_failed"
    assert "shorter" in json.loads(out)["hint"]


def test_until_the_disks_are_told_nothing_is_imported_that_serving_does_not_need(
    served: Served, tmp_path: Path
) -> None:
    """A guest waits for its first read, and importing any of these takes longer than that read."""
    words = ["restore", "serve", *served.words, "--socket-dir", str(tmp_path / "s")]
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "workers.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HOLDFAST_TAP": str(served.program), "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["disks"]
    process.terminate()
    _, errors = process.communicate(timeout=20)
    lines = [line for line in errors.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines}
    assert {"numpy", "workers.restore.provider"} <= imported
    dear = {"typer", "rich", "boto3", "numpy.ma", "asyncio", "sqlalchemy", "pydantic", "fastapi"}
    assert not dear & imported
