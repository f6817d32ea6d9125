"""`holdfast restore`: list what can be brought back, write it as images, or serve it at once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from host_agent.wire.keys import TenantKey
from host_agent.wire.limits import MIB
from host_agent.wire.names import Identity
from workers.cli.keyfiles import read_tenant_key
from workers.cli.options import (
    ExportOptions,
    ListOptions,
    PointOptions,
    ServeOptions,
    StoreOptions,
    command,
)
from workers.cli.output import EXIT_FAILED, print_json, shown_progress, size_text
from workers.journal.catalogue import choose_stream, list_streams
from workers.journal.errors import JournalError, JournalMoved, NoSuchStream
from workers.journal.moment import open_at
from workers.journal.points import Point
from workers.journal.reader import Journal, ReadOptions, open_journal
from workers.journal.selectors import format_time
from workers.restore.progress import Progress
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

if TYPE_CHECKING:
    from workers.restore.export import Exported

# What a command needs alone is imported in it: a guest may be waiting for its first read.
restore_app = typer.Typer(
    help="Bring back any moment from the bucket and the tenant's key alone.", no_args_is_help=True
)


#: How often an export whose objects were collected meanwhile is planned anew.
_PLANS_MAX = 3

#: glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (bytes: beyond any buffer of a frame), M_ARENA_MAX.
_MALLOC = {-1: 256 * MIB, -3: 32 * MIB, -8: 2}


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


@contextmanager
def _opened(options: PointOptions, progress: Progress) -> Iterator[tuple[Journal, Point]]:
    """The journal and the moment that the options name."""
    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    identity = choose_stream(store, options.tenant, options.group, options.host)
    progress.start("read", None, "segments")
    journal, point = open_at(store, identity, key, options.at)
    with journal:
        progress.say(describe(point))
        yield journal, point


def describe(point: Point) -> str:
    """One sentence about the moment that was chosen."""
    name = f"sequence {point.seq} of generation {point.generation_name[:8]}"
    if point.checkpoint is not None:
        tag = f" ({point.checkpoint.tag})" if point.checkpoint.tag else ""
        name = f"checkpoint {point.checkpoint.id}{tag}, {name}"
    text = f"Chosen: {name}, written at {format_time(point.time)}"
    if point.quiet is not None:
        text += f"; {point.quiet.sentence()}"
    if point.damaged_ranges:
        text += f"; {len(point.damaged_ranges)} ranges could not be read from the source's disk"
    return text + "."


def _keep_freed_memory() -> None:
    """Let what is freed stay with this process: frames come and go by megabytes, and a page that
    is had anew from the system costs about what its bytes cost."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        for parameter, value in _MALLOC.items():
            tune(parameter, value)


def _export(options: ExportOptions, progress: Progress) -> tuple[Exported, str]:
    from workers.restore import export as exporting

    with _opened(options, progress) as (journal, point):
        # The same moment, should it have to be planned again.
        options.at = f"seq:{point.generation_name}/{point.seq}"
        wanted = exporting.ExportOptions(
            options.output,
            force=options.force,
            cache=options.map_cache,
            digest=options.digest,
            progress=progress,
        )
        done = exporting.export(journal, point, wanted)
        return done, f"{journal.identity.group}/{journal.identity.host}"


@command(restore_app, "export", ExportOptions)
def export_command(options: ExportOptions) -> None:
    """Write every disk of a moment as a raw image, verified by reading it back."""
    _keep_freed_memory()
    with shown_progress() as progress:
        for left in reversed(range(_PLANS_MAX)):
            try:
                done, stream = _export(options, progress)
                break
            except JournalMoved:
                if not left:
                    raise
                progress.say("What was read was collected meanwhile: planning again.")
    if options.json:
        print_json(done.as_dict(stream))
        return
    for disk in done.disks:
        digest = f", blake3:{disk.digest}" if disk.digest else ""
        typer.echo(f"{disk.path}: {size_text(disk.size)}, verified{digest}")


@command(restore_app, "serve", ServeOptions)
def serve_command(options: ServeOptions) -> None:
    """Serve every disk of a moment over NBD at once; what guests write goes to a scratch layer."""
    from workers.restore import serve as serving

    with shown_progress() as progress, _opened(options, progress) as (journal, point):
        wanted = serving.ServeOptions(
            options.socket_dir, fill=options.fill, cache=options.map_cache, progress=progress
        )
        with serving.serve(journal, point, wanted) as served:
            if options.json:
                print_json(served.as_dict())
            else:
                for disk in served.disks:
                    typer.echo(f"{disk.name}: {disk.uri}")
                sys.stderr.write("Serving until Ctrl-C.\n")
            served.wait(progress.say)
