"""What a folder keeps of a restore: `restore.json` while it runs, `restored.json` once it is over.

The latter tells people what the images are, and a manager that did not hear of the end and asks
again that there is nothing left to do. Calls block.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from host_agent.recovery.errors import TargetInUse, target_error
from host_agent.wire.restoring import Opened
from host_agent.wire.ticket import Receipt, Ticket

FILE, OVER = "restore.json", "restored.json"


class Moment(msgspec.Struct, frozen=True):
    """What a stream's part of the restore is."""

    receipt: Receipt
    time_ns: int
    checkpoint: str | None
    unreadable: list[tuple[str, int, int]]

    @classmethod
    def of(cls, opened: Opened) -> Moment:
        """As the data node opened it."""
        return cls(opened.receipt, opened.time_ns, opened.checkpoint, opened.unreadable)

    def as_dict(self) -> dict[str, object]:
        """For an operation's outcome."""
        return {
            "stream": self.receipt.stream,
            "generation": self.receipt.generation,
            "seq": self.receipt.seq,
            "time_ns": self.time_ns,
            "checkpoint": self.checkpoint,
            "unreadable": [list(found) for found in self.unreadable],
        }


class Finished(msgspec.Struct, frozen=True):
    """A disk that was read back and is right: sizes in bytes."""

    name: str
    size: int
    bytes_received: int


class Kept(msgspec.Struct, frozen=True):
    """The file. `finished`, once all disks were verified: what is left is to give them names."""

    tenant: str
    vpg: str
    ticket: str
    moments: dict[str, Moment] = {}
    finished: list[Finished] = []

    def with_moment(self, moment: Moment) -> Kept:
        """A stream was begun."""
        moments = {**self.moments, moment.receipt.stream: moment}
        return Kept(self.tenant, self.vpg, self.ticket, moments)


def load(folder: Path, ticket: Ticket) -> Kept:
    """What is kept for this ticket's restore, or its beginning; TargetInUse, TargetUnusable."""
    path = folder / FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = path.read_bytes()
    except FileNotFoundError:
        return _over(folder, ticket) or Kept(ticket.tenant, ticket.vpg, ticket.id)
    except OSError as error:
        raise target_error(folder, "used", error) from error
    kept = _parse(data)
    if kept is None or (kept.tenant, kept.vpg) != (ticket.tenant, ticket.vpg):
        raise TargetInUse(
            f"{path} is of another restore.", hint="Name another folder, or remove what is there."
        )
    if kept.ticket != ticket.id:
        # Its receipts are not of this ticket; its images are gone on from if the moment is theirs.
        return Kept(ticket.tenant, ticket.vpg, ticket.id)
    return kept


def _over(folder: Path, ticket: Ticket) -> Kept | None:
    """What is kept of this very restore, if it is over and all of its images are there still."""
    try:
        kept = _parse((folder / OVER).read_bytes())
        if kept is None or kept.ticket != ticket.id:
            return None
        sizes = [(folder / f"{disk.name}.raw").stat().st_size for disk in kept.finished]
    except OSError:
        return None
    return kept if sizes == [disk.size for disk in kept.finished] else None


def _parse(data: bytes) -> Kept | None:
    try:
        return msgspec.json.decode(data, type=Kept)
    except (msgspec.DecodeError, UnicodeError):
        return None


def save(folder: Path, kept: Kept) -> None:
    """Keep it, whole and durably; TargetUnusable."""
    path, part = folder / FILE, folder / f"{FILE}.part"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise target_error(path, "written", error) from error


def finish(folder: Path) -> None:
    """The restore is over. Repeats change nothing. TargetUnusable."""
    try:
        if (folder / FILE).exists():
            (folder / FILE).replace(folder / OVER)
    except OSError as error:
        raise target_error(folder / FILE, "renamed", error) from error
