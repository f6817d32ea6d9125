"""`holdfast verify` and `holdfast journal`: prove a journal, and keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from workers.cli.keyfiles import read_tenant_key
from workers.cli.options import OutputOptions, StoreOptions, command
from workers.cli.output import EXIT_FAILED, print_json, shown_progress, size_text
from workers.journal.catalogue import list_streams
from workers.journal.chain import DAMAGE
from workers.journal.errors import JournalError, NoSuchStream
from workers.journal.reader import open_journal
from workers.journal.verify import Verified, verify
from workers.restore.fetch import fetch_all
from workers.restore.progress import Progress
from workers.storage.port import ObjectStore
from workers.storage.url import open_store

journal_app = typer.Typer(help="Keep journals: what is done by hand now.", no_args_is_help=True)


@dataclass(kw_only=True)
class VerifyOptions(StoreOptions):
    """Options of `verify`."""

    deep: Annotated[
        bool, typer.Option("--deep", help="Read every stored byte, and open all data, as well.")
    ] = False


@dataclass(kw_only=True)
class ScrubOptions(OutputOptions):
    """Options of `journal scrub`: no key."""

    store: Annotated[
        str, typer.Option(help="The bucket: file:///folder or s3://bucket/prefix?endpoint=…")
    ]
    tenant: Annotated[str, typer.Option(help="The tenant.")]
    group: Annotated[str | None, typer.Option(help="The protection group.")] = None
    host: Annotated[str | None, typer.Option(help="The host, where a group has several.")] = None


@dataclass(kw_only=True)
class IndexOptions(StoreOptions):
    """Options of `journal index`."""


@dataclass(kw_only=True)
class HashesOptions(StoreOptions):
    """Options of `journal hashes`."""


class Report:
    """One answer for each stream; ends with 1 if anything is wrong."""

    def __init__(self, options: StoreOptions | ScrubOptions) -> None:
        self._options = options
        self._streams: list[dict[str, Any]] = []
        self._bad = False

    def add(self, identity: Identity, done: str, fields: dict[str, Any]) -> None:
        """A stream's outcome; `done` says in words what was read."""
        problems: list[dict[str, Any]] = fields["problems"]
        self._bad = self._bad or bool(problems)
        self._streams.append({"group": identity.group, "host": identity.host, **fields})
        if self._options.json:
            return
        verdict = f"{len(problems)} problems" if problems else "no problems"
        typer.echo(f"{identity.group} on {identity.host}: {done}: {verdict}")
        for problem in problems:
            typer.echo(f"  {problem['message']} {problem['hint']}".rstrip())

    def end(self, store: ObjectStore) -> None:
        """Print the object for programs; leave with 1 if there were problems."""
        if self._options.json:
            tenant = self._options.tenant
            fields = {"store": store.label, "tenant": tenant, "ok": not self._bad}
            print_json({**fields, "streams": self._streams})
        if self._bad:
            raise typer.Exit(EXIT_FAILED)


def named_streams(options: StoreOptions | ScrubOptions, store: ObjectStore) -> list[Identity]:
    """The streams that the options name; NoSuchStream if there is none."""
    found = [
        stream
        for stream in list_streams(store, options.tenant, options.group)
        if options.host in (None, stream.host)
    ]
    if not found:
        asked = "/".join(filter(None, (options.tenant, options.group, options.host)))
        raise NoSuchStream(
            f"{store.label} holds no journal of {asked}.",
            hint="`holdfast restore list` shows what it holds.",
        )
    return found


def verify_command(options: VerifyOptions) -> None:
    """Prove journals offline: every link, index, record hash; with --deep every byte and seal."""
    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    report = Report(options)
    with shown_progress() as progress:
        for identity in named_streams(options, store):
            fields = _verify_one(options, progress, store, (identity, key))
            read = f", {size_text(fields['bytes'])} read back" if options.deep else ""
            done = f"{fields['segments']} segments, {fields['records']} records{read}"
            report.add(identity, done, fields)
    report.end(store)


def _verify_one(
    options: VerifyOptions,
    progress: Progress,
    store: ObjectStore,
    stream: tuple[Identity, TenantKey],
) -> dict[str, Any]:
    identity, key = stream
    progress.start("read", None, "segments")
    records = 0
    try:
        with open_journal(store, identity, key) as journal:
            records = journal.rows
            if options.deep:
                progress.start("check", None, "bytes")
                found = verify(journal, progress.advance)
            else:
                problems: list[HoldfastError] = [journal.damage] if journal.damage else []
                found = Verified(journal.segments, frames=journal.frames, problems=problems)
    except (JournalError, *DAMAGE) as error:
        # Nothing could be opened at all: of this stream, and the others are looked at as well.
        found = Verified(problems=[error])
    return {"records": records, "deep": options.deep, **found.as_dict()}


@command(journal_app, "index", IndexOptions)
def index_command(options: IndexOptions) -> None:
    """Make the index objects that journals lack: they make opening a long journal quick."""
    # A restore does not wait for what only this command needs.
    from workers.journal.indexing import write_indexes

    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    report = Report(options)
    with shown_progress() as progress:
        for identity in named_streams(options, store):
            progress.start("read", None, "segments")
            found = write_indexes(store, identity, key)
            done = f"{len(found.made)} index objects made, {size_text(found.bytes)}"
            report.add(identity, done, found.as_dict())
    report.end(store)


@command(journal_app, "hashes", HashesOptions)
def hashes_command(options: HashesOptions) -> None:
    """Make hash lists: with the newest one a host can compare its disks instead of sending them."""
    # A restore does not wait for what only this command needs.
    from workers.journal.hashlist import write_hashes

    key = read_tenant_key(options.key_file, options.tenant)
    store = open_store(options.store)
    report = Report(options)
    with shown_progress() as progress:
        for identity in named_streams(options, store):
            progress.start("hash", None, "bytes")
            found = write_hashes(store, identity, key, fetch_all, progress.advance)
            what = "was there" if found.there else f"{found.blocks} blocks"
            done = f"hash list of place {found.place}: {what}, {size_text(found.bytes)}"
            report.add(identity, done, found.as_dict())
    report.end(store)


@command(journal_app, "scrub", ScrubOptions)
def scrub_command(options: ScrubOptions) -> None:
    """Read every stored object back and check it without a key: hashes, links, key objects."""
    # A restore does not wait for what only this command needs.
    from workers.journal.scrub import scrub

    store = open_store(options.store)
    report = Report(options)
    with shown_progress() as progress:
        for identity in named_streams(options, store):
            progress.start("check", None, "bytes")
            found = scrub(store, identity, progress.advance)
            done = f"{found.segments} segments, {size_text(found.bytes)} read back"
            report.add(identity, done, found.as_dict())
    report.end(store)
