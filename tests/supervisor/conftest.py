"""A deployment's certificates, made once."""

from __future__ import annotations

import pytest

from tests.servers.datanode import Deployment


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return Deployment(tmp_path_factory.mktemp("deployment"))
