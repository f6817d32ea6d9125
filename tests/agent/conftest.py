"""Folders with short names (the paths of sockets are limited), removed whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.place import Place, made_place


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path, in memory: a disk's own flushes are no part of this."""
    made = Path(tempfile.mkdtemp(prefix="hf-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """A site with a real tap, a disk of 64 MiB and a small ring; nothing runs yet."""
    with made_place(folder) as made:
        config = made.site.setup.path("agent.toml")
        config.write_text(config.read_text() + "ring_mib = 16\n")
        yield made
