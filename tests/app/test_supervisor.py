"""Processes that die are started again; they end in order and with whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from app.embedded.supervisor import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    GOOD_SECONDS,
    ProcessFailed,
    Program,
    Supervisor,
    backoff,
)

pytestmark = pytest.mark.anyio
_SECONDS_MAX = 30.0


def program(name: str, code: str, mark: Path) -> Program:
    """Ready once it made the file `mark`."""

    async def is_ready() -> bool:
        return mark.exists()

    return Program(name, [sys.executable, "-c", code, str(mark)], {}, is_ready)


def sleeper(mark: Path) -> Program:
    code = "import pathlib,sys,time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    return program(mark.name, code, mark)


async def until(condition: object) -> None:
    async with asyncio.timeout(_SECONDS_MAX):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


def test_the_wait_grows_and_a_good_run_forgives() -> None:
    waits, wait = [], 0.0
    for _ in range(12):
        wait = backoff(wait, 0.0)
        waits.append(wait)
    assert waits[0] == BACKOFF_SECONDS_MIN
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_SECONDS_MAX
    assert backoff(BACKOFF_SECONDS_MAX, GOOD_SECONDS) == BACKOFF_SECONDS_MIN


async def test_what_is_killed_is_started_again_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    supervisor = Supervisor(tmp_path / "logs", told.append)
    await supervisor.start([sleeper(tmp_path / "one"), sleeper(tmp_path / "two")])
    child, other = supervisor.children
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in (None, first))
    assert child.restarts == 1
    assert other.restarts == 0
    assert "one ended with -9" in told[0]
    pids = [child.pid, other.pid]
    await supervisor.stop()
    assert [one.pid for one in supervisor.children] == [None, None]
    for pid in pids:
        assert pid is not None
        assert not Path(f"/proc/{pid}").exists()


async def test_a_process_that_does_not_start_is_named_with_what_it_said(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs", lambda _: None)
    bad = program("bad", "raise SystemExit('no such place')", tmp_path / "never")
    with pytest.raises(ProcessFailed, match="bad did not start: no such place"):
        await supervisor.start([bad])
    await supervisor.stop()


async def test_what_ignores_the_signal_is_ended_by_a_kill(tmp_path: Path) -> None:
    code = (
        "import pathlib,signal,sys,time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    )
    supervisor = Supervisor(tmp_path / "logs", lambda _: None)
    await supervisor.start([program("deaf", code, tmp_path / "deaf")])
    supervisor.kill()
    await supervisor.stop()
    assert supervisor.children[0].last_exit == -signal.SIGKILL
