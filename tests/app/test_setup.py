"""`holdfast setup`: what a deployment of several processes shares, made once, and once only."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from app.database.roles import APP, ROLES
from app.embedded.postgres import Postgres, PostgresSettings

HOLDFAST = Path(sys.executable).with_name("holdfast")


@pytest.fixture
def server() -> Iterator[Postgres]:
    """A PostgreSQL that asks everybody but its superuser for a password."""
    with tempfile.TemporaryDirectory(prefix="setup-") as made:
        Path(made).chmod(0o755)
        postgres = Postgres(Path(made) / "pg", PostgresSettings(is_durable=False))
        postgres.start()
        postgres.stop()
        rules = "local all postgres trust\nlocal all all scram-sha-256\n"
        (Path(made) / "pg/data/pg_hba.conf").write_text(rules)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()


def set_up(server: Postgres, state: Path) -> dict[str, Any]:
    """Run the command."""
    url = server.url("holdfast").set(drivername="postgresql")
    told = {
        "HOLDFAST_ADMINISTRATOR_URL": url.render_as_string(hide_password=False),
        "HOLDFAST_STATE_DIRECTORY": str(state),
        "HOLDFAST_SERVER_NAMES": '["api.example"]',
    }
    done = subprocess.run(
        [HOLDFAST, "setup", "--json"],
        env={**os.environ, **told}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def ask_as(server: Postgres, role: str, passfile: str | None) -> str:
    """Who the database says that we are."""
    query = {"host": str(server.url().query["host"])} | ({"passfile": passfile} if passfile else {})
    url = server.url("holdfast", role).set(query=query)
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return str(connection.execute(text("SELECT current_user")).scalar_one())
    finally:
        engine.dispose()


def test_it_makes_what_is_shared_and_keeps_it_the_second_time(
    server: Postgres, tmp_path: Path
) -> None:
    engine = create_engine(server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE holdfast"))
    engine.dispose()
    state = tmp_path / "state"
    first = set_up(server, state)
    for role in ROLES:
        assert ask_as(server, role, first["database_passwords"]) == role
    with pytest.raises(OperationalError):
        ask_as(server, APP, None)
    kept = {file.name: file.read_bytes() for file in state.iterdir() if file.is_file()}
    for name in ("secret", "root.key", "server.pem", "provider.key", "database.pgpass"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
    again = set_up(server, state)
    assert again == first
    assert {file.name: file.read_bytes() for file in state.iterdir() if file.is_file()} == kept
    assert ask_as(server, APP, again["database_passwords"]) == APP
