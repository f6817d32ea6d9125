"""What the sweeps share: the taps of `tests/tap`."""

from __future__ import annotations

import pytest

from tests.tap.conftest import cleanup, follow, make_disk, memory, start_tap, storage, tap
from tests.tap.daemon import build

__all__ = ["cleanup", "follow", "make_disk", "memory", "start_tap", "storage", "tap"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile before the first test's clock runs."""
    if any("tests/failpoints/" in item.nodeid for item in session.items):
        build()
