"""`holdfast data-node` and `holdfast store`: the provider's data nodes and stores of journals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from workers.cli.control import (
    Json,
    ProfileName,
    SaveToken,
    Yes,
    check_save,
    connect,
    go_on,
    show_one,
    show_rows,
    show_secret,
)
from workers.cli.options import OutputOptions, command

node_app = typer.Typer(help="Data nodes, as the provider.", no_args_is_help=True)
store_app = typer.Typer(help="Stores of journals, as the provider.", no_args_is_help=True)
GROUPS = {"data-node": node_app, "store": store_app}

_ASKED = {
    "drain": "Have the streams of {} move to other nodes? It serves nobody until it is undrained.",
    "revoke": "Shut {} out for good? Its streams move to other nodes.",
}


@dataclass(kw_only=True)
class ProviderOptions(OutputOptions):
    """As whom."""

    profile: ProfileName = None


@dataclass(kw_only=True)
class AddNodeOptions(ProviderOptions):
    """Options of `data-node add`."""

    name: Annotated[str, typer.Argument(help="The node's name, for people.")]
    territory: Annotated[str, typer.Option(help="ISO 3166 code: whose law holds there.")]
    door: Annotated[list[str], typer.Option(help="HOST:PORT where hosts reach it; the best first.")]
    save_token: SaveToken = None


@command(node_app, "add", AddNodeOptions)
def add_node(options: AddNodeOptions) -> None:
    """Add a data node. The token by which it joins works once, within minutes."""
    from app.datanodes.schemas import DataNodeInput

    check_save(options.save_token)
    wanted = DataNodeInput.model_construct(
        name=options.name, territory=options.territory, doors=options.door
    )
    with connect(options.profile) as client:
        made = client.create_data_node(wanted)
        show_secret(made, options.save_token, as_json=options.json)


@node_app.command("invite")
def invite_node(
    node_id: str, save_token: SaveToken = None, profile: ProfileName = None, as_json: Json = False
) -> None:
    """A new join token for a node that lost its key, or whose token was not used in time."""
    check_save(save_token)
    with connect(profile) as client:
        show_secret(client.invite_data_node(node_id), save_token, as_json=as_json)


@node_app.command("list")
def list_nodes(profile: ProfileName = None, as_json: Json = False) -> None:
    """All data nodes, revoked ones too."""
    columns = ("id", "name", "territory", "state", "doors", "seen_at")
    with connect(profile) as client:
        show_rows(client.list_data_nodes(), columns, as_json=as_json)


@node_app.command("drain")
def drain_node(
    node_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Have its streams move to other nodes; it serves nobody until it is undrained."""
    go_on(_ASKED["drain"].format(node_id), yes=yes)
    with connect(profile) as client:
        show_one(client.change_data_node(node_id, "drain"), as_json=as_json)


@node_app.command("undrain")
def undrain_node(node_id: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """Have it serve again."""
    with connect(profile) as client:
        show_one(client.change_data_node(node_id, "undrain"), as_json=as_json)


@node_app.command("revoke")
def revoke_node(
    node_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Shut it out at once and for good."""
    go_on(_ASKED["revoke"].format(node_id), yes=yes)
    with connect(profile) as client:
        show_one(client.change_data_node(node_id, "revoke"), as_json=as_json)


@dataclass(kw_only=True)
class AddStoreOptions(ProviderOptions):
    """Options of `store add`."""

    name: Annotated[str, typer.Argument(help="Data nodes write into the one named `default`.")]
    territory: Annotated[str, typer.Option(help="ISO 3166 code: whose law holds there.")]
    url: Annotated[str, typer.Option(help="file:///folder or s3://bucket/prefix?endpoint=…")]
    wall: Annotated[str, typer.Option(help="static, folder, or shared (which is warned of).")]
    credential_file: Annotated[
        Path | None,
        typer.Option(help="Of a shared one: JSON with access_key_id and secret_access_key."),
    ] = None


@command(store_app, "add", AddStoreOptions)
def add_store(options: AddStoreOptions) -> None:
    """Add a store of journals."""
    import json

    from app.datanodes.schemas import JournalStoreInput

    file = options.credential_file
    credential = json.loads(file.read_text()) if file is not None else {}
    wanted = JournalStoreInput.model_construct(
        name=options.name,
        territory=options.territory,
        url=options.url,
        wall=options.wall,
        access_key_id=credential.get("access_key_id"),
        secret_access_key=credential.get("secret_access_key"),
    )
    with connect(options.profile) as client:
        show_one(client.create_journal_store(wanted), as_json=options.json)


@store_app.command("list")
def list_stores(profile: ProfileName = None, as_json: Json = False) -> None:
    """All stores, without credentials."""
    columns = ("id", "name", "territory", "wall", "url")
    with connect(profile) as client:
        show_rows(client.list_journal_stores(), columns, as_json=as_json)
