"""A ticket becomes raw images: through whichever data node serves it, over breaks and restarts.

DIRECTORY/restore.json          which moment of which stream it is, while it runs
DIRECTORY/restored.json         the same, once it is over
DIRECTORY/DISK.raw              each disk, once it was read back and is right
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from host_agent.recovery import kept as keeping
from host_agent.recovery.door import BROKEN, DoorConnection, Doorway, connect
from host_agent.recovery.errors import (
    DoorsAway,
    RestoreRefused,
    TargetInUse,
    TargetUnusable,
    VerifyFailed,
)
from host_agent.recovery.kept import Finished, Kept, Moment
from host_agent.recovery.partial import PartialImage
from host_agent.recovery.plan import reads_of
from host_agent.stream.link import Credentials
from host_agent.wire.errors import WireError
from host_agent.wire.restoring import Disk, Opened
from host_agent.wire.ticket import Ticket, read_unbelieved

_BACKOFF_SECONDS_MIN, _BACKOFF_SECONDS_MAX = 0.5, 15.0


@dataclass(frozen=True)
class Wanted:
    """What to restore, through which doors (HOST:PORT), as whom, into which folder."""

    ticket: str
    doors: Sequence[str]
    credentials: Credentials
    directory: Path


@dataclass
class Progress:
    """How far it is, in bytes: phases `connect`, `restore`, `verify`."""

    phase: str = "connect"
    bytes_total: int = 0
    bytes_done: int = 0

    @property
    def share(self) -> float:
        """0 to 1 over all phases: reading back is a tenth of the work."""
        part = min(1.0, self.bytes_done / self.bytes_total) if self.bytes_total else 0.0
        return {"connect": 0.0, "restore": 0.9 * part, "verify": 0.9 + 0.1 * part}[self.phase]


@dataclass(frozen=True)
class Means:
    """Clock and pauses; how long to go on without any progress, seconds."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = field(default_factory=lambda: random.Random().random)  # noqa: S311
    patience_seconds: float = 600.0


@dataclass(frozen=True)
class Restored:
    """What is there now."""

    directory: Path
    disks: Sequence[Finished]
    moments: Sequence[Moment]

    def as_dict(self) -> dict[str, object]:
        """For an operation's outcome. Sizes in bytes."""
        disks = [
            {
                "name": disk.name,
                "path": str(self.directory / f"{disk.name}.raw"),
                "size": disk.size,
                "bytes_received": disk.bytes_received,
            }
            for disk in self.disks
        ]
        moments = [moment.as_dict() for moment in self.moments]
        return {"disks": disks, "moments": moments, "verified": True}


Report = Callable[[Progress], None]


async def restore(wanted: Wanted, report: Report, means: Means | None = None) -> Restored:
    """Bring all disks of the ticket into the folder, verified. Called again, it goes on.

    RestoreRefused, DoorsAway, TargetInUse, TargetUnusable, VerifyFailed, WireError.
    """
    return await _Restore(wanted, report, means or Means()).run()


class _Restore:
    def __init__(self, wanted: Wanted, report: Report, means: Means) -> None:
        self._wanted, self._report, self._means = wanted, report, means
        self._ticket: Ticket = read_unbelieved(wanted.ticket)
        self._doors = [_doorway(door, self._ticket, wanted) for door in wanted.doors]
        if not self._doors:
            raise DoorsAway("No data node was named.", hint="Ask for the restore anew.")
        self._kept = Kept(self._ticket.tenant, self._ticket.vpg, self._ticket.id)
        self._images: dict[str, PartialImage] = {}
        self._streams: dict[str, str] = {}
        self._progress = Progress()
        self._moved_at = means.monotonic()
        self._last: BaseException | None = None

    async def run(self) -> Restored:
        folder = self._wanted.directory
        self._kept = await asyncio.to_thread(keeping.load, folder, self._ticket)
        try:
            if not self._kept.finished:
                for stream in self._ticket.streams:
                    await self._fetch_stream(stream)
                await self._verify()
            await asyncio.to_thread(self._publish)
        finally:
            for image in self._images.values():
                image.close()
        return Restored(folder, self._kept.finished, list(self._kept.moments.values()))

    # --- one stream, over as many connections as it takes

    async def _fetch_stream(self, stream: str) -> None:
        refused: dict[int, RestoreRefused] = {}
        attempt = 0
        while True:
            door = attempt % len(self._doors)
            try:
                await self._visit(self._doors[door], stream)
            except (TargetUnusable, TargetInUse):
                raise
            except BROKEN as error:
                self._last = error
                refused.pop(door, None)
                if isinstance(error, RestoreRefused) and error.retry_seconds is None:
                    refused[door] = error
                    if len(refused) == len(self._doors):
                        raise
            else:
                return
            attempt += 1
            await self._pause(attempt)

    async def _pause(self, attempt: int) -> None:
        """Before the next attempt; DoorsAway when nothing came for too long."""
        if self._means.monotonic() - self._moved_at > self._means.patience_seconds:
            raise DoorsAway(
                f"No data node went on with the restore: {self._last or 'they do not answer'}",
                hint="Run it again when they are back; what is restored already is kept.",
                retryable=True,
            ) from None
        rounds = attempt // len(self._doors)
        seconds = min(_BACKOFF_SECONDS_MAX, _BACKOFF_SECONDS_MIN * 2 ** min(rounds, 8))
        await self._means.sleep(seconds * (0.5 + self._means.jitter() / 2))

    async def _visit(self, way: Doorway, stream: str) -> None:
        known = self._kept.moments.get(stream)
        async with await connect(way) as door:
            receipt = known.receipt if known else None
            opened = await door.open(self._wanted.ticket, stream, receipt)
            await self._begin(opened, stream)
            for disk in opened.disks:
                await self._fetch_disk(door, disk)

    async def _begin(self, opened: Opened, stream: str) -> None:
        """The images of the stream, made or gone on with."""
        if opened.receipt.stream != stream:
            raise WireError("The data node opened another stream than was asked for.")
        if stream not in self._kept.moments:
            self._kept = self._kept.with_moment(Moment.of(opened))
            await asyncio.to_thread(keeping.save, self._wanted.directory, self._kept)
        moment = f"{self._ticket.tenant}/{self._ticket.vpg}/{stream}/{opened.receipt.selector}"
        for disk in opened.disks:
            other = self._streams.setdefault(disk.name, stream)
            if other != stream:
                raise TargetInUse(
                    f"Two streams hold {disk.name}: those of {other} and {stream}.",
                    hint="Restore the streams one by one, each into a folder of its own.",
                )
            if disk.name in self._images:
                continue
            image = PartialImage(self._wanted.directory, disk.name, disk.size, moment)
            await asyncio.to_thread(image.open)
            self._images[disk.name] = image
            self._progress.bytes_total += disk.data_bytes
            self._progress.bytes_done += image.done.bytes
        self._tell("restore")

    async def _fetch_disk(self, door: DoorConnection, disk: Disk) -> None:
        image = self._images[disk.name]
        ranges = [found async for found in door.ranges(disk.name)]
        reads = reads_of(ranges, image.done)
        async for data in door.read(disk.name, reads):
            await asyncio.to_thread(image.write, data.offset, data.data, data.crc)
            self._progress.bytes_done += len(data.data)
            self._moved_at = self._means.monotonic()
            self._tell("restore")
        await asyncio.to_thread(image.sync)

    # --- the end

    async def _verify(self) -> None:
        total = sum(image.done.bytes for image in self._images.values())
        self._progress = Progress("verify", total)
        loop = asyncio.get_running_loop()

        def advance(count: int) -> None:
            loop.call_soon_threadsafe(self._advance, count)

        for image in self._images.values():
            try:
                await asyncio.to_thread(image.verify, advance)
            except VerifyFailed:
                # What cannot be believed is not gone on from.
                await asyncio.to_thread(image.discard)
                raise
        finished = [
            Finished(image.name, image.size, image.done.bytes) for image in self._images.values()
        ]
        kept = self._kept
        self._kept = Kept(kept.tenant, kept.vpg, kept.ticket, kept.moments, finished)
        await asyncio.to_thread(keeping.save, self._wanted.directory, self._kept)

    def _publish(self) -> None:
        """Every verified image gets its name; may be gone on with after a crash."""
        folder = self._wanted.directory
        for disk in self._kept.finished:
            PartialImage(folder, disk.name, disk.size, "").publish()
        keeping.finish(folder)

    def _advance(self, count: int) -> None:
        self._progress.bytes_done += count
        self._tell("verify")

    def _tell(self, phase: str) -> None:
        self._progress.phase = phase
        self._report(self._progress)


def _doorway(door: str, ticket: Ticket, wanted: Wanted) -> Doorway:
    host, colon, port = door.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise WireError(f"{door!r:.80} is not the address of a data node.")
    return Doorway((host.strip("[]"), int(port)), ticket.tenant, wanted.credentials)
