"""`holdfast restore`: list what can be brought back, write it as images, or serve it at once."""

from __future__ import annotations

import typer

from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from workers.cli.exporting import export_command
from workers.cli.keyfiles import read_tenant_key
from workers.cli.options import (
    ExportOptions,
    ListOptions,
    ServeOptions,
    StoreOptions,
    command,
)
from workers.cli.output import EXIT_FAILED, print_json, shown_progress
from workers.cli.serving import serve_command
from workers.journal.catalogue import list_streams
from workers.journal.errors import JournalError, NoSuchStream
from workers.journal.reader import ReadOptions, open_journal
from workers.restore.progress import Progress
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

restore_app = typer.Typer(
    help="Bring back any moment from the bucket and the tenant's key alone.", no_args_is_help=True
)


@command(restore_app, "list", ListOptions)
def list_command(options: ListOptions) -> None:
    """Show the streams of a tenant, and the moments of each that can be brought back."""
    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    streams = _fitting(store, options)
    with shown_progress() as progress:
        shown = [_list_one(options, progress, store, (stream, key)) for stream in streams]
    if options.json:
        print_json({"store": store.label, "tenant": options.tenant, "streams": shown})
    elif not streams:
        typer.echo(f"{store.label} holds no journal of tenant {options.tenant}.")
    if any(fields["damage"] or fields.get("problems") for fields in shown):
        raise typer.Exit(EXIT_FAILED)


def _fitting(store: ObjectStore, options: StoreOptions) -> list[Identity]:
    streams = list_streams(store, options.tenant, options.group)
    fitting = [stream for stream in streams if options.host in (None, stream.host)]
    if not fitting and (options.group or options.host):
        asked = "/".join(name for name in (options.tenant, options.group, options.host) if name)
        raise NoSuchStream(
            f"{store.label} holds no journal of {asked}.",
            hint="Leave --group and --host away to see what it holds.",
        )
    return fitting


def _list_one(
    options: ListOptions, progress: Progress, store: ObjectStore, stream: tuple[Identity, TenantKey]
) -> dict[str, object]:
    from workers.cli.tables import show_stream
    from workers.journal.verify import verify
    from workers.restore.listing import summarise

    identity, key = stream
    progress.start("read", None, "segments")
    try:
        # What every stored byte is checked against is read from the segments themselves.
        journal = open_journal(store, identity, key, ReadOptions(use_index=not options.verify))
    except JournalError as error:
        if not options.json:
            typer.echo(f"{identity.group} on {identity.host}: {error}")
        return {"group": identity.group, "host": identity.host, "damage": error.as_dict()}
    with journal:
        listing = summarise(journal)
        fields = listing.as_dict()
        checked = None
        if options.verify:
            progress.start("check", None, "bytes")
            checked = verify(journal, progress.advance)
            fields["verified"] = checked.as_dict()
            fields["problems"] = len(checked.problems)
        if not options.json:
            show_stream(listing, checked)
    return fields


command(restore_app, "export", ExportOptions)(export_command)
command(restore_app, "serve", ServeOptions)(serve_command)
