"""A service with a folder for its managers' files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.dsm.process import DsmProcess
from tests.app.service import Service
from tests.servers.dsm import Site, manager


@pytest.fixture
def site(service: Service, tmp_path: Path) -> Site:
    return Site(tmp_path, service)


@pytest.fixture
async def process(site: Site) -> AsyncIterator[DsmProcess]:
    async with manager(site) as started:
        yield started
