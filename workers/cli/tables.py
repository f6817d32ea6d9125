"""What `restore list` shows to people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from workers.cli.output import size_text
from workers.journal.retention import HOUR_SECONDS
from workers.journal.selectors import format_time
from workers.journal.verify import Verified
from workers.restore.listing import Listing

_CHECKPOINTS_SHOWN = 20
_FILE_COLUMNS = 200
_GAPS_SHOWN = 10


def show_stream(listing: Listing, checked: Verified | None) -> None:
    """A stream's disks, history and newest checkpoints on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # Whoever reads this from a file or a pipe wants whole lines.
        console.width = _FILE_COLUMNS
    identity, journal = listing.journal.identity, listing.journal
    console.print(
        f"[bold]{identity.group}[/bold] on {identity.host}: {listing.state},"
        f" {journal.segments} segments, {journal.rows} records"
    )
    for name, size in listing.disks:
        console.print(f"  disk {name}, {size_text(size)}")
    for stretch in listing.history:
        console.print(
            f"  any moment from {format_time(stretch.first_time)} to"
            f" {format_time(stretch.last_time)} (generation {stretch.generation[:8]},"
            f" seq {stretch.first_seq} to {stretch.last_seq})"
        )
    for gap in listing.gaps[-_GAPS_SHOWN:]:
        if gap.after is not None or gap.until is None:
            after = "the beginning" if gap.after is None else format_time(gap.after)
            until = "now, it is not over" if gap.until is None else format_time(gap.until)
            console.print(f"  no moment after {after} until {until}: a sync ({gap.cause})")
    if journal.layers is not None:
        boundary = journal.layers.boundary
        why = {
            "window": f"older than its window of {boundary.window_seconds / HOUR_SECONDS:g} hours",
            "size_limit": "beyond its size limit",
        }[boundary.reason]
        began = format_time(boundary.history_from)
        console.print(f"  history begins at {began}: what was before is {why}")
    if listing.checkpoints:
        console.print(_checkpoints(listing))
    else:
        console.print("  no checkpoints")
    if journal.damage is not None:
        console.print(f"  [bold red]damaged[/bold red]: {journal.damage}", markup=True)
    if checked is not None:
        _show_verified(console, checked)


def _checkpoints(listing: Listing) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2))
    for title in ("checkpoint", "time", "kind", "tag", "seq"):
        table.add_column(title, overflow="fold", no_wrap=title != "tag")
    shown = listing.checkpoints[-_CHECKPOINTS_SHOWN:]
    for checkpoint in reversed(shown):
        table.add_row(
            checkpoint.id,
            format_time(checkpoint.time),
            checkpoint.kind,
            checkpoint.tag or "",
            str(checkpoint.seq),
        )
    older = len(listing.checkpoints) - len(shown)
    if older:
        table.caption = f"{older} older ones; --json shows all"
    return table


def _show_verified(console: Console, checked: Verified) -> None:
    console.print(
        f"  read back {checked.segments} segments, {checked.frames} frames,"
        f" {size_text(checked.bytes)}: {len(checked.problems)} problems"
    )
    for problem in checked.problems:
        console.print(f"    {problem}", markup=False)
