"""One real PostgreSQL for a process of the run, and a fresh database for each test that asks."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL, create_engine, text

from app.database.migrate import prepare_database, upgrade
from app.embedded.postgres import Postgres, PostgresSettings

_TEMPLATE = "holdfast_template"
_numbers = itertools.count(1)


class Cluster:
    """A running server, with a migrated database that others are copied from."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._administer(f"CREATE DATABASE {_TEMPLATE}")
        prepare_database(server.url(_TEMPLATE))
        upgrade(server.url(_TEMPLATE))

    def url(self, database: str, user: str = "postgres") -> URL:
        """How to reach a database."""
        return self._server.url(database, user)

    @contextlib.contextmanager
    def database(self) -> Iterator[URL]:
        """A database of its own, at the newest schema; removed with the block."""
        name = f"holdfast_{next(_numbers)}"
        self._administer(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        prepare_database(self._server.url(name))
        try:
            yield self._server.url(name)
        finally:
            self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    @contextlib.contextmanager
    def empty_database(self) -> Iterator[URL]:
        """A database with the roles and no table."""
        name = f"holdfast_{next(_numbers)}"
        self._administer(f"CREATE DATABASE {name}")
        prepare_database(self._server.url(name))
        try:
            yield self._server.url(name)
        finally:
            self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        engine = create_engine(self._server.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A server that loses everything at a power cut; ended with the block."""
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        Path(directory).chmod(0o755)
        server = Postgres(Path(directory) / "server", PostgresSettings(is_durable=False))
        server.start()
        try:
            yield Cluster(server)
        finally:
            server.stop()
