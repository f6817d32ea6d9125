"""`holdfast keys`: make a tenant's key and its groups' keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from host_agent.wire.keys import GroupKey, TenantKey
from workers.cli.keyfiles import check_new, read_tenant_key, write_new
from workers.cli.options import OutputOptions, command
from workers.cli.output import print_json
from workers.cli.processes import run_keys

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
    for name, value in (("KEYS_DIRECTORY", directory), ("KEYS_SOCKET", socket)):
        if value is not None:
            os.environ[f"HOLDFAST_{name}"] = str(value)
    raise typer.Exit(run_keys())


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


@dataclass(kw_only=True)
class ExportOptions(OutputOptions):
    """Options of `keys export-recovery`."""

    tenant_name: Annotated[str, typer.Option(help="The tenant's name, typed to confirm.")]
    reason: Annotated[str, typer.Option(help="Why; kept in the audit log.")]
    output: Annotated[Path, typer.Option(help="The key file to make.")]
    code: Annotated[
        str | None, typer.Option(help="A one-time code: people in a session need one.")
    ] = None
    profile: Annotated[
        str | None, typer.Option(help="Instead of the chosen one, or $HOLDFAST_PROFILE.")
    ] = None


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


@command(keys_app, "export-recovery", ExportOptions)
def export_recovery(options: ExportOptions) -> None:
    """Get the tenant's key file from the service: with the bucket it opens everything, without the
    service. Every administrator is told. Keep it where nobody finds both."""
    from app.client.client import Client
    from app.client.profiles import Profiles
    from app.keys.exporting import open_exported, request_export

    check_new(options.output)
    request, private = request_export(options.tenant_name, options.reason, options.code)
    with Client(Profiles().get(options.profile)) as client:
        key = open_exported(client.export_recovery_key(request), private)
    write_new(options.output, key.dump())
    _tell(options, options.output, {"tenant": key.tenant, "id": key.id})


def _tell(options: OutputOptions, path: Path, fields: dict[str, str]) -> None:
    if options.json:
        print_json({"path": str(path), **fields})
    else:
        typer.echo(f"{path}: key {fields['id']}")
