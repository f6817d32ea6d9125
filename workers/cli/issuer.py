"""`holdfast issuer`: with which OpenID Connect issuer the tenant's people log in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from workers.cli.control import Json, ProfileName, Yes, go_on, group, show_one
from workers.cli.options import OutputOptions, command
from workers.cli.output import print_json
from workers.cli.people import connect_people

issuer_app = group("The issuer that the tenant's people log in with.")
GROUPS = {"issuer": issuer_app}

Mapping = Annotated[
    list[str], typer.Option("--map", help="GROUP=ROLE or GROUP=ROLE@SCOPE. May be repeated.")
]


def _mapping(text: str) -> dict[str, Any]:
    name, equals, granted = text.rpartition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r}: write it as GROUP=ROLE or GROUP=ROLE@SCOPE.")
    role, _, scope = granted.partition("@")
    return {"group": name, "role": role, "scope": scope or None}


@dataclass(kw_only=True)
class IssuerOptions(OutputOptions):
    """Which issuer, and what its groups are granted."""

    url: Annotated[str, typer.Argument(help="Exactly as the issuer names itself.")]
    client_id: Annotated[str, typer.Option(help="As it is registered at the issuer.")]
    mapped: Mapping
    client_secret_file: Annotated[
        typer.FileText | None, typer.Option(help="- reads standard input. None: as it is kept.")
    ] = None
    scope: Annotated[list[str] | None, typer.Option(help="Asked for beside openid.")] = None
    groups_claim: Annotated[str, typer.Option(help="The claim that lists groups.")] = "groups"
    profile: ProfileName = None


def set_issuer(options: IssuerOptions) -> None:
    """Configure the issuer. Local accounts stay until it is enforced."""
    file = options.client_secret_file
    wanted = {
        "url": options.url,
        "client_id": options.client_id,
        "client_secret": None if file is None else file.readline().strip(),
        "scopes": options.scope or ["profile"],
        "groups_claim": options.groups_claim,
        "mappings": [_mapping(text) for text in options.mapped],
    }
    with connect_people(options.profile) as client:
        show_one(client.put_issuer(wanted), as_json=options.json)


command(issuer_app, "set", IssuerOptions)(set_issuer)


@issuer_app.command("show")
def show_issuer(profile: ProfileName = None, as_json: Json = False) -> None:
    """The issuer, without its secret; what to register there."""
    with connect_people(profile) as client:
        show_one(client.get_issuer(), as_json=as_json)


@issuer_app.command("enforce")
def enforce_issuer(
    break_glass: Annotated[str, typer.Option(help="usr_…: the one who may still log in locally.")],
    yes: Yes = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Refuse local logins of everybody but one administrator. The profile has to be of a session
    that came through the issuer: see `holdfast login`.
    """
    go_on("Refuse local logins of everybody else, and end their sessions?", yes=yes)
    with connect_people(profile) as client:
        show_one(client.enforce_issuer(break_glass), as_json=as_json)


@issuer_app.command("relax")
def relax_issuer(profile: ProfileName = None, as_json: Json = False) -> None:
    """Allow local logins again."""
    with connect_people(profile) as client:
        show_one(client.relax_issuer(), as_json=as_json)


@issuer_app.command("delete")
def delete_issuer(yes: Yes = False, profile: ProfileName = None, as_json: Json = False) -> None:
    """Remove the issuer. Who came in through it is out."""
    go_on("Remove the issuer, and end every session that came through it?", yes=yes)
    with connect_people(profile) as client:
        client.delete_issuer()
    if as_json:
        print_json({"deleted": True})
    else:
        typer.echo("the issuer is removed")
