"""A real PostgreSQL, the real application, two tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.app.service import Service, running_service
from tests.servers.postgres import Cluster, running_cluster


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as running:
        yield running


@pytest.fixture
async def service(cluster: Cluster) -> AsyncIterator[Service]:
    with cluster.database() as url:
        async with running_service(url) as running:
            yield running
