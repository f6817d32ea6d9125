"""The processes of the service, each told by its environment: `holdfast api` and the others."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def api_command() -> None:
    """Serve the REST API. It is told by environment variables: see docker-compose.yml."""
    from app.http.process import ApiSettings, run_api
    from app.kit.settings import read_settings

    raise typer.Exit(run_api(read_settings(ApiSettings)))


def worker_command() -> None:
    """Do what is due: Celery's worker. It is told by environment variables."""
    from app.kit.settings import read_settings
    from workers.tasks.celery import configured
    from workers.tasks.runner import WorkerSettings

    settings = read_settings(WorkerSettings)
    # The pool's own children are told what we are by the environment.
    words = ["worker", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    configured(settings).worker_main([*words, f"--loglevel={settings.log_level}"])


def setup_command(
    as_json: Annotated[bool, typer.Option("--json", help="Say it as one JSON object.")] = False,
) -> None:
    """Make what a deployment shares: secret, root, certificate, roles, schema. May be repeated."""
    from app.embedded.setup import SetupSettings, run_setup
    from app.kit.settings import read_settings

    made = run_setup(read_settings(SetupSettings))
    if as_json:
        typer.echo(json.dumps(made))
        return
    for name, value in made.items():
        typer.echo(f"{name.replace('_', ' '):<20} {value}")
