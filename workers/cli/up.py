"""`holdfast up`: the whole service on one machine."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from app.embedded.up import Started


@dataclass(kw_only=True)
class UpCommandOptions:
    """Options of `up`."""

    directory: Annotated[
        Path, typer.Option(help="Everything that is kept lies here; made if absent.")
    ] = Path("holdfast-state")
    host: Annotated[str, typer.Option(help="Address on which all doors listen.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The API's port.")] = 7443
    control_port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Where hosts reach their managers.")
    ] = 7444
    data_port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Where hosts send their streams.")
    ] = 7445
    name: Annotated[
        list[str] | None, typer.Option(help="A further name of the API for its certificate.")
    ] = None
    territory: Annotated[str, typer.Option(help="ISO 3166 code of whose law holds here.")] = "CH"
    json: Annotated[bool, typer.Option(help="Say what was started as one JSON object.")] = False


def up_command(options: UpCommandOptions) -> None:
    """Run the whole service, with servers of its own, in one folder, until it is told to stop."""
    # The other commands must not wait for a web stack that they do not use.
    from app.embedded.up import UpOptions, run_up

    wanted = UpOptions(
        options.directory,
        options.host,
        options.port,
        options.control_port,
        options.data_port,
        tuple(options.name or ()),
        options.territory,
    )
    if not options.json:
        typer.echo(f"Starting in {options.directory} ...", err=True)
    raise typer.Exit(run_up(wanted, _say_json if options.json else _say))


def _is_terminal() -> bool:
    return os.isatty(sys.stdout.fileno())


def _say(started: Started) -> None:
    typer.echo(f"Holdfast answers on {started.url}")
    typer.echo(f"  its root certificate   {started.root_file}")
    typer.echo(f"  SHA-256 of it          {started.root_sha256}")
    if started.provider_token is None:
        typer.echo("  provider key           as shown at the first start")
    elif _is_terminal():
        typer.echo(f"  provider key           {started.provider_token}")
        typer.echo("  It is shown this once; keep it where only you can read it.")
    else:
        typer.echo(f"  provider key           in {started.root_file.with_name('provider.key')}")
    typer.echo("Stop it with Ctrl-C or SIGTERM.")
    sys.stdout.flush()


def _say_json(started: Started) -> None:
    kept = None if started.provider_token is None else "provider.key"
    document = {
        "url": started.url,
        "root_certificate": str(started.root_file),
        "root_sha256": started.root_sha256,
        "provider_key_file": str(started.root_file.with_name(kept)) if kept else None,
    }
    typer.echo(json.dumps(document))
    sys.stdout.flush()
