"""An ingest with its certificates, a local folder as its store, and agents for it."""

from __future__ import annotations

import contextlib
import functools
import random
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from tests.servers.agent import Agent, Source, client_context
from tests.servers.ingest_process import TENANT, IngestProcess, IngestSetup, Pki, running_ingest
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

Connect = Callable[..., Agent]
MakeSource = Callable[..., Source]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def tenant_key() -> TenantKey:
    return TenantKey.make(TENANT)


@pytest.fixture
def setup(tmp_path: Path, pki: Pki) -> IngestSetup:
    return IngestSetup(tmp_path, pki, f"file://{tmp_path}/store")


@pytest.fixture
def store(setup: IngestSetup) -> ObjectStore:
    """The same folder, seen by the test."""
    return open_store(setup.store, create=True)


@pytest.fixture
def ingest(setup: IngestSetup) -> Iterator[IngestProcess]:
    with running_ingest(setup) as process:
        yield process
        assert process.process.poll() is None, f"ingest died:\n{process.log}"
        assert "event=defect" not in process.log, process.log
        assert "event=loop_error" not in process.log, process.log


@pytest.fixture(scope="module")
def shared_ingest(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[IngestProcess]:
    """One process for a module whose tests use groups of their own."""
    directory = tmp_path_factory.mktemp("shared")
    with running_ingest(IngestSetup(directory, pki, f"file://{directory}/store")) as process:
        yield process
        assert process.process.poll() is None, f"ingest died:\n{process.log}"
        assert "event=defect" not in process.log, process.log
        assert "event=loop_error" not in process.log, process.log


@pytest.fixture
def make_source(tenant_key: TenantKey) -> MakeSource:
    """Sources of streams; the same name and seed give the same generation."""

    def make(group: str = "shop", host: str = "host1", seed: int = 7) -> Source:
        return Source(Identity(TENANT, group, host), tenant_key, random.Random(seed))

    return make


@pytest.fixture
def source(make_source: MakeSource) -> Source:
    return make_source()


@pytest.fixture(scope="session")
def context(pki: Pki) -> Callable[[str], ssl.SSLContext]:
    """A host's TLS context, made once: reading certificates is slow."""
    return functools.cache(lambda host: client_context(pki.ca[0], pki.agent(host)))


@pytest.fixture
def connect(context: Callable[[str], ssl.SSLContext]) -> Iterator[Connect]:
    """Connect a source's agent to an ingest; all connections are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(ingest: IngestProcess, source: Source) -> Agent:
            agent = Agent(ingest.address, context(source.identity.host), source)
            stack.callback(agent.leave)
            return agent

        yield make
