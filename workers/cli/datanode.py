"""`holdfast datanode`: run a data node, let it join, ask how it is."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from host_agent.wire.errors import HoldfastError
from workers.cli.output import print_json
from workers.cli.processes import run_datanode

datanode_app = typer.Typer(
    help="A data node. Without a word it runs, told by environment variables.",
    invoke_without_command=True,
)
_SECONDS_MAX = 10.0
Directory = Annotated[Path, typer.Option(help="The data node's folder.")]


class NodeAway(HoldfastError):
    """No data node answers in this folder."""

    code = "node_away"


@datanode_app.callback()
def run(context: typer.Context) -> None:
    """Receive streams and serve restores for every tenant that the control plane names."""
    if context.invoked_subcommand is not None:
        return
    raise typer.Exit(run_datanode())


@datanode_app.command("join")
def join_command(
    directory: Directory,
    api: Annotated[str, typer.Option(help="The control plane's API, https://HOST:PORT.")],
    token_file: Annotated[Path, typer.Option(help="A file with the join token.")],
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
) -> None:
    """Get this node's certificate with a join token, in place of the one that it had."""
    from workers.supervisor.identity import join

    identity = join(api, token_file.read_text(), directory)
    if as_json:
        print_json({"renew_at": identity.renew_at.isoformat(), "directory": str(directory)})
    else:
        typer.echo(f"Joined. The identity is in {directory}.")


@datanode_app.command("status")
def status_command(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
) -> None:
    """What the node is doing, which walls stand between its tenants, what is wrong."""
    status = read_status(directory)
    if as_json:
        print_json(status)
        return
    walls = ", ".join(f"{count} {wall}" for wall, count in status["walls"].items())
    typer.echo(f"control plane  {status['control']['state']}")
    typer.echo(f"tenants        {status['tenants']}, with {len(status['services'])} processes")
    typer.echo(f"walls          {walls or 'none needed yet'}")
    for service in status["services"]:
        typer.echo(f"  {service['service']} {service['tenant']}: {service['state']}")
    for warning in status["warnings"]:
        typer.echo(f"warning: {warning}")


def read_status(directory: Path) -> dict[str, Any]:
    """What the node in this folder says of itself; NodeAway."""
    from workers.supervisor.command import STATUS_SOCKET

    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_SECONDS_MAX)
            connection.connect(str(directory / STATUS_SOCKET))
            data = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError as error:
        raise NodeAway(
            f"No data node answers in {directory}: {error.strerror}.", hint="Is it running?"
        ) from None
    status: dict[str, Any] = json.loads(data)
    return status
