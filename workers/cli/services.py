"""The processes of the service, each told by its environment: `holdfast api` and the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from workers.cli import processes


def api_command() -> None:
    """Serve the REST API. It is told by environment variables: see docker-compose.yml."""
    raise typer.Exit(processes.run_api())


def dsm_command() -> None:
    """Manage hosts: their control door, checkpoints, health. Told by HOLDFAST_ variables."""
    raise typer.Exit(processes.run_dsm())


def worker_command() -> None:
    """Do what is due: Celery's worker. It is told by environment variables."""
    raise typer.Exit(processes.run_worker())


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


admin_app = typer.Typer(help="On the server, for who runs it.", no_args_is_help=True)


@admin_app.callback()
def admin() -> None:
    """On the server, for who runs it."""


@admin_app.command("reset")
def reset_admin(
    tenant: Annotated[str, typer.Argument(help="ten_…")],
    directory: Annotated[
        Path | None,
        typer.Option(help="The folder of a running `holdfast up`; else told by the environment."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as one JSON object.")] = False,
) -> None:
    """A new break-glass administrator of a tenant, also where its issuer is enforced. The
    invitation is shown this once: give it to `holdfast accept`.
    """
    from app.embedded.admin import run_reset

    if not yes:
        typer.confirm(f"Make {tenant} a new administrator, as its people will see?", abort=True)
    made = run_reset(tenant, directory)
    if as_json:
        typer.echo(json.dumps(made))
        return
    for name, value in made.items():
        typer.echo(f"{name.replace('_', ' '):<12} {value}")
