"""`holdfast journal fold`, `collect`, `pin` and `unpin`: how long a journal's history is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from host_agent.wire.errors import HoldfastError
from host_agent.wire.names import Identity
from workers.cli.journal import Report, ScrubOptions, journal_app, named_streams
from workers.cli.keyfiles import read_tenant_key
from workers.cli.options import StoreOptions, command
from workers.cli.output import print_json, shown_progress, size_text
from workers.journal.retention import HOUR_SECONDS, WINDOW_SECONDS, Policy
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

if TYPE_CHECKING:
    from workers.journal.collect import Plan
    from workers.journal.reader import Journal

# What a command needs alone is imported in it: other commands start quickly.

#: A writer that stalls looks at the boundary after a tenth of this: shorter graces need --force.
GRACE_SECONDS_MIN = 600

GRACE_HOURS = 24.0

_NAMES_SHOWN = 10


class GraceTooShort(HoldfastError):
    """A grace that stalled writers and open restores may outlast."""

    code = "grace_too_short"


@dataclass(kw_only=True)
class FoldOptions(StoreOptions):
    """Options of `journal fold`."""

    window: Annotated[
        float, typer.Option(help="The history window, hours: 1 to 720. Older moments are folded.")
    ] = WINDOW_SECONDS / HOUR_SECONDS
    size_limit: Annotated[
        int | None,
        typer.Option(help="The most bytes that a journal may take: beyond it, history is shorter."),
    ] = None
    hashes: Annotated[
        bool, typer.Option(help="Make the hash list of the newest layer's end as well.")
    ] = True


@dataclass(kw_only=True)
class CollectCommandOptions(ScrubOptions):
    """Options of `journal collect`: no key."""

    grace: Annotated[
        float, typer.Option(help="Hours that a boundary has stood, by the store's clock.")
    ] = GRACE_HOURS
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False
    limit: Annotated[int | None, typer.Option(help="Objects to delete at most.")] = None
    force: Annotated[
        bool, typer.Option("--force", help="A suspicious share, or a grace under 10 minutes, too.")
    ] = False


@dataclass(kw_only=True)
class PinOptions(StoreOptions):
    """Options of `journal pin` and `unpin`."""

    checkpoint: Annotated[
        str, typer.Argument(help="checkpoint:ID or tag:TEXT, or a checkpoint's id alone.")
    ]


@command(journal_app, "fold", FoldOptions)
def fold_command(options: FoldOptions) -> None:
    """Move what is older than the history window into layers; deletes nothing."""
    from workers.journal.errors import JournalDamaged
    from workers.journal.fold import Folder, FoldTools
    from workers.journal.selectors import format_time
    from workers.restore.fetch import fetch_all

    key = read_tenant_key(options.key_file, options.tenant)
    policy = Policy(int(options.window * HOUR_SECONDS), options.size_limit)
    store = open_store(options.store)
    report = Report(options)
    with shown_progress() as progress:
        for identity in named_streams(options, store):
            progress.start("fold", None, "bytes")
            tools = FoldTools(
                fetch_all,
                os.urandom,
                hashes=_hash_list if options.hashes else None,
                advance=progress.advance,
                say=progress.say,
            )
            folder = Folder(store, (identity, key), policy, tools)
            try:
                folder.run()
            except JournalDamaged as error:
                folder.result.problems.append(error)
            found = folder.result
            done = f"{found.folded_places} places folded, {size_text(found.bytes)} made"
            if found.boundary:
                done += f"; history begins at {format_time(found.history_from)}"
            report.add(identity, done, found.as_dict())
    report.end(store)


def _hash_list(journal: Journal) -> None:
    from workers.journal.hashlist import make_hashes
    from workers.restore.fetch import fetch_all

    make_hashes(journal, fetch_all)


@command(journal_app, "collect", CollectCommandOptions)
def collect_command(options: CollectCommandOptions) -> None:
    """Delete what layers stand for, once that has stood for the grace; says first what goes."""
    from workers.journal.collect import CollectOptions, Collector

    grace = options.grace * HOUR_SECONDS
    if grace < GRACE_SECONDS_MIN and not options.force:
        raise GraceTooShort(
            f"A grace of {options.grace:g} hours is shorter than a stalled writer or an open"
            " restore may last.",
            hint="Name at least 0.17 hours; --force is for journals that nobody uses.",
        )
    wanted = CollectOptions(grace, options.dry_run, options.limit, options.force)
    store = open_store(options.store)
    report = Report(options)
    with shown_progress() as progress:
        for identity in named_streams(options, store):
            progress.start("collect", None, "objects")
            collector = Collector(store, identity, wanted)
            plan = collector.plan()
            _say_plan(options, identity, plan)
            for _ in collector.steps(plan):
                progress.advance(1)
            done = f"{plan.deleted} objects deleted, {plan.left} left for later"
            report.add(identity, done, plan.as_dict())
    report.end(store)


def _say_plan(options: CollectCommandOptions, identity: Identity, plan: Plan) -> None:
    if options.json or not plan.names:
        return
    verb = "would go" if options.dry_run else "will go"
    typer.echo(
        f"{identity.group} on {identity.host}: {len(plan.names)} of {plan.objects} objects {verb},"
        f" {size_text(plan.bytes)}, all before place {plan.first_place}:"
    )
    for name in plan.names[:_NAMES_SHOWN]:
        typer.echo(f"  {name}")
    if len(plan.names) > _NAMES_SHOWN:
        typer.echo(f"  … and {len(plan.names) - _NAMES_SHOWN} more")


@command(journal_app, "pin", PinOptions)
def pin_command(options: PinOptions) -> None:
    """Keep a checkpoint beyond the history window."""
    from workers.journal.pins import pin

    store, identity, checkpoint = _named(options)
    pin(store, identity, checkpoint)
    # A fold may have passed it meanwhile.
    _named(options)
    _pinned(options, identity, checkpoint, is_pinned=True)


@command(journal_app, "unpin", PinOptions)
def unpin_command(options: PinOptions) -> None:
    """Keep a checkpoint, a tagged one too, no longer than the history window."""
    from workers.journal.pins import unpin

    store, identity, checkpoint = _named(options)
    unpin(store, identity, checkpoint)
    _pinned(options, identity, checkpoint, is_pinned=False)


def _named(options: PinOptions) -> tuple[ObjectStore, Identity, str]:
    from workers.journal.catalogue import choose_stream
    from workers.journal.pins import find_checkpoint

    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    identity = choose_stream(store, options.tenant, options.group, options.host)
    found = find_checkpoint(store, identity, key, options.checkpoint)
    return store, identity, found.id


def _pinned(options: PinOptions, identity: Identity, checkpoint: str, *, is_pinned: bool) -> None:
    fields: dict[str, Any] = {
        "group": identity.group,
        "host": identity.host,
        "checkpoint": checkpoint,
        "pinned": is_pinned,
    }
    if options.json:
        print_json(fields)
    else:
        kept = "is kept until it is unpinned" if is_pinned else "is kept as long as the window"
        typer.echo(f"{identity.group} on {identity.host}: checkpoint {checkpoint} {kept}")
