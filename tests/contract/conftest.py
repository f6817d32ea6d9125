"""The stores that the suite runs over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.faulty_s3 import FaultyS3, running_faulty_s3
from tests.servers.seaweed import CREDENTIALS, Seaweed, running_seaweed
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

_numbers = itertools.count()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def bucket_url(seaweed: Seaweed) -> str:
    return seaweed.make_bucket("contract")


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store", create=True)
    url: str = request.getfixturevalue("bucket_url")
    bucket, _, options = url.partition("?")
    return open_store(f"{bucket}/part{next(_numbers)}?{options}", credentials=CREDENTIALS)


@pytest.fixture
def faulty() -> Iterator[FaultyS3]:
    with running_faulty_s3() as service:
        yield service
