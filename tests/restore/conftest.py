"""What all tests of restores use."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: sockets lie in it, and the system limits their paths."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        yield Path(folder)
