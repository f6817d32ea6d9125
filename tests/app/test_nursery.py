"""Processes that are forked from one that has their libraries: as if each had started alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.embedded.nursery import Fork, Nursery
from app.embedded.supervisor import Program

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


async def _ready() -> bool:
    return True


@pytest.fixture
async def nursery(tmp_path: Path) -> AsyncIterator[Nursery]:
    made = Nursery(tmp_path)
    yield made
    await made.stop()


async def _launch(nursery: Nursery, log: Path, verb: str, **told: str) -> Fork:
    environment = {f"HOLDFAST_{name.upper()}": text for name, text in told.items()}
    with log.open("ab") as file:
        return await nursery.launch(Program(verb, [], environment, _ready), file)


def _worker(folder: Path) -> dict[str, str]:
    """What a worker is told that waits for a broker which is not there."""
    (folder / "secret").write_bytes(bytes(32))
    return {
        "database_url": "postgresql://127.0.0.1:1/none",
        "secret_file": str(folder / "secret"),
        "broker_url": f"redis+socket://{folder}/none.sock",
        "store_url": f"file://{folder}",
        "keys_socket": str(folder / "none"),
        "worker_processes": "1",
    }


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_each_is_told_by_its_environment_alone_and_its_end_is_told(
    nursery: Nursery, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    good = await _launch(nursery, log, "worker", **_worker(tmp_path))
    bad = await _launch(nursery, tmp_path / "other", "worker", broker_url="redis://127.0.0.1:1")
    assert await bad.wait() == 1
    said = (tmp_path / "other").read_text()
    assert "HOLDFAST_STORE_URL" in said, "the first one's was not known to the second"
    assert "HOLDFAST_BROKER_URL" not in said
    assert good.returncode is None
    async with asyncio.timeout(60):  # it is told of as soon as it is there
        while Path(f"/proc/{good.pid}/comm").read_text() != "hf-worker\n":
            await asyncio.sleep(0.05)
    assert os.getpgid(good.pid) == good.pid
    good.kill()
    assert await good.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        good.send_signal(signal.SIGTERM)


async def test_forks_end_with_their_parent_and_another_one_takes_its_place(
    nursery: Nursery, tmp_path: Path
) -> None:
    first = await _launch(nursery, tmp_path / "log", "worker", **_worker(tmp_path))
    parent = int(Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    async with asyncio.timeout(60):
        assert await first.wait() < 0
    second = await _launch(nursery, tmp_path / "log", "worker", **_worker(tmp_path))
    assert second.returncode is None
    second.kill()
    await second.wait()


async def test_nothing_is_left_when_it_is_stopped(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path)
    await nursery.begin()
    fork = await _launch(nursery, tmp_path / "log", "worker", **_worker(tmp_path))
    fork.kill()
    await fork.wait()
    parents = [pid for pid in _naming(tmp_path) if pid != os.getpid()]
    assert len(parents) == 1
    await nursery.stop()
    assert not any(_is_there(pid) for pid in parents)


def _naming(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(entry.name))
    return found
