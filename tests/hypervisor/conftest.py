"""Folders with short names (socket paths are limited to 107 bytes), removed whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hypervisor.machines import MIB, Daemon
from tests.integration.place import Place, made_place


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path, in memory."""
    made = Path(tempfile.mkdtemp(prefix="hf-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """A site with ingest, tap and agent that run, a small ring, and a disk that nobody serves."""
    with made_place(folder, disk_bytes=24 * MIB) as made:
        config = made.site.setup.path("agent.toml")
        config.write_text(config.read_text() + "ring_mib = 16\n")
        made.site.start_ingest()
        made.site.start_host()
        yield made


@pytest.fixture
def daemon(place: Place) -> Daemon:
    """A machine that runs; its disk is the place's."""
    made = Daemon(place.processes, place.folder, place.disk)
    made.start()
    return made
