"""`holdfast keys`: make a tenant's key and its groups' keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from host_agent.wire.keys import GroupKey, TenantKey
from workers.cli.keyfiles import read_tenant_key, write_new
from workers.cli.options import OutputOptions, command
from workers.cli.output import print_json

keys_app = typer.Typer()


@keys_app.callback(invoke_without_command=True)
def serve_keys(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Option(help="Where the tenants' keys lie: HOLDFAST_KEYS_DIRECTORY.")
    ] = None,
    socket: Annotated[
        Path | None, typer.Option(help="The Unix socket to answer on: HOLDFAST_KEYS_SOCKET.")
    ] = None,
) -> None:
    """Run the key service, or make key files. Whoever loses a tenant's key loses its journals."""
    if context.invoked_subcommand is not None:
        return
    # Making key files must not wait for what only the service uses.
    from app.keys.process import KeysSettings, run_keys
    from app.kit.settings import PREFIX, read_settings

    for name, value in (("KEYS_DIRECTORY", directory), ("KEYS_SOCKET", socket)):
        if value is not None:
            os.environ[PREFIX + name] = str(value)
    raise typer.Exit(run_keys(read_settings(KeysSettings)))


@dataclass(kw_only=True)
class MakeTenantOptions(OutputOptions):
    """Options of `keys make-tenant`."""

    tenant: Annotated[str, typer.Option(help="The tenant.")]
    output: Annotated[Path, typer.Option(help="The key file to make.")]


@dataclass(kw_only=True)
class MakeGroupOptions(OutputOptions):
    """Options of `keys make-group`."""

    key_file: Annotated[Path, typer.Option(help="The tenant's key file.")]
    group: Annotated[str, typer.Option(help="The protection group.")]
    output: Annotated[Path, typer.Option(help="The key file to make.")]


@command(keys_app, "make-tenant", MakeTenantOptions)
def make_tenant(options: MakeTenantOptions) -> None:
    """Make a tenant's key. It opens everything of the tenant: keep copies where the bucket is
    not."""
    key = TenantKey.make(options.tenant)
    write_new(options.output, key.dump())
    _tell(options, options.output, {"tenant": key.tenant, "id": key.id})


@command(keys_app, "make-group", MakeGroupOptions)
def make_group(options: MakeGroupOptions) -> None:
    """Make a group's key, wrapped under the tenant's: it goes to the group's host agents."""
    tenant_key = read_tenant_key(options.key_file)
    key = GroupKey.make(tenant_key, options.group)
    write_new(options.output, key.dump())
    _tell(options, options.output, {"tenant": key.tenant, "group": key.group, "id": key.id})


def _tell(options: OutputOptions, path: Path, fields: dict[str, str]) -> None:
    if options.json:
        print_json({"path": str(path), **fields})
    else:
        typer.echo(f"{path}: key {fields['id']}")
