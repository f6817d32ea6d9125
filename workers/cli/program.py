"""The commands of `holdfast`: ingest, restore, keys and all else, as typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workers.cli.options import command


def make_app(first: str = "") -> typer.Typer:
    """The program. With the first word of the command line, only what that word needs is there: who
    restores or starts must not wait for the imports of everything else."""
    app = typer.Typer(
        name="holdfast",
        help="Every write journalled, any moment brought back.",
        no_args_is_help=True,
        add_completion=first != "restore",
        pretty_exceptions_enable=False,
    )
    app.callback()(root)
    alone = {"restore": _add_restore, "datanode": _add_datanode, "up": _add_up}
    if first in alone:
        alone[first](app)
    elif first not in _add_service(app):
        _add_others(app)
    return app


def _add_restore(app: typer.Typer) -> None:
    from workers.cli.restore import restore_app

    app.add_typer(restore_app, name="restore")


def _add_datanode(app: typer.Typer) -> None:
    from workers.cli.datanode import datanode_app

    app.add_typer(datanode_app, name="datanode")


def _add_up(app: typer.Typer) -> None:
    from workers.cli.up import UpCommandOptions, up_command

    command(app, "up", UpCommandOptions)(up_command)


def _add_service(app: typer.Typer) -> set[str]:
    """What asks a running service; the names of it."""
    from workers.cli.control import GROUPS, audit_command, events_command
    from workers.cli.datanodes import GROUPS as DATA_NODES
    from workers.cli.happening import GROUPS as PROTECTION
    from workers.cli.issuer import GROUPS as ISSUER
    from workers.cli.login import LoginOptions, accept_command, login_command, logout_command
    from workers.cli.people import GROUPS as PEOPLE
    from workers.cli.provider import GROUPS as PROVIDER
    from workers.cli.usage import GROUPS as USAGE

    groups = GROUPS | PEOPLE | ISSUER | DATA_NODES | PROTECTION | PROVIDER | USAGE
    for name, commands in groups.items():
        app.add_typer(commands, name=name)
    command(app, "login", LoginOptions)(login_command)
    app.command("logout")(logout_command)
    app.command("accept")(accept_command)
    app.command("events")(events_command)
    app.command("audit")(audit_command)
    return {*groups, "login", "logout", "accept", "events", "audit"}


def _add_others(app: typer.Typer) -> None:
    _add_restore(app)
    _add_datanode(app)
    _add_up(app)
    from workers.cli import keeping as _keeping  # noqa: F401  (its commands register themselves)
    from workers.cli.journal import VerifyOptions, journal_app, verify_command
    from workers.cli.keys import keys_app
    from workers.cli.services import (
        admin_app,
        api_command,
        dsm_command,
        setup_command,
        worker_command,
    )

    app.add_typer(keys_app, name="keys")
    app.add_typer(journal_app, name="journal")
    command(app, "verify", VerifyOptions)(verify_command)
    app.command("api")(api_command)
    app.command("dsm")(dsm_command)
    app.command("worker")(worker_command)
    app.command("setup")(setup_command)
    app.add_typer(admin_app, name="admin")
    app.command()(ingest)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"holdfast {version('holdfast')}")
        raise typer.Exit


def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Every write journalled, any moment brought back."""


def ingest(
    config: Annotated[Path, typer.Option(help="The configuration file, TOML.")],
) -> None:
    """Receive a tenant's streams and keep them in its journal."""
    # Restores must not wait for what only the server needs.
    from workers.ingest.command import run_ingest

    raise typer.Exit(run_ingest(config) or 0)
