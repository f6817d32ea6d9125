"""What a process of the service loads: nothing that it does not use, for all of them run at once
on one machine.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

_LISTED = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
_NEVER = {
    "app.keys.process": {"sqlalchemy", "fastapi", "celery", "numpy", "typer", "rich", "boto3"},
    "app.embedded.up": {"sqlalchemy", "fastapi", "celery", "numpy", "cryptography", "boto3"},
    "app.http.process": {"celery", "typer", "rich", "boto3", "alembic", "httpx2", "numpy"},
    "app.dsm.process": {"celery", "typer", "rich", "boto3", "alembic", "httpx2"},
    "workers.supervisor.command": {"sqlalchemy", "fastapi", "celery", "numpy", "typer", "boto3"},
    "workers.cli.main": {"typer", "rich", "numpy", "sqlalchemy"},
    "workers.tasks.celery": {"typer", "rich", "alembic", "httpx2", "numpy", "boto3"},
}


def _loaded(module: str) -> set[str]:
    words = [sys.executable, "-c", f"import {module}; {_LISTED}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", sorted(_NEVER))
def test_a_process_loads_only_what_it_uses(module: str) -> None:
    assert _loaded(module) & _NEVER[module] == set()


def test_what_is_loaded_is_seen() -> None:
    assert {"sqlalchemy", "fastapi"} <= _loaded("app.http.process")
