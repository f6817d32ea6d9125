"""The private PostgreSQL as root: unprivileged, and below folders that others may not enter."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from app.embedded.postgres import Postgres, PostgresSettings


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path that others may enter."""
    with tempfile.TemporaryDirectory(prefix="pg-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def _rights_of(server: Postgres) -> tuple[str, int]:
    """The user and the capabilities of the process that serves us."""
    engine = create_engine(server.url("postgres"))
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        told = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
    engine.dispose()
    return told["Uid"].split()[1], int(told["CapEff"], 16)


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_it_has_no_right_of_roots_wherever_its_folder_is(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    server = Postgres(folder / "state/postgres", PostgresSettings(is_durable=False))
    for _ in ("made", "started again"):
        server.start()
        try:
            assert _rights_of(server) == (str(os.geteuid() or 65_534), 0)
        finally:
            server.stop()
