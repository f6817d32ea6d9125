"""Folders with short names (socket paths are limited to 107 bytes), removed whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.place import Place, made_place


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path, traversable by a database's user."""
    made = Path(tempfile.mkdtemp(prefix="hf-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def place(folder: Path) -> Iterator[Place]:
    """A site with a disk of 64 MiB; nothing runs yet."""
    with made_place(folder) as made:
        yield made
