"""A moment of a stream as raw image files.

Each frame's data is fetched once, opened, checked against the tap's checksums, and only then
written to where the map says. Every file is read back from its disk, each region once it is whole;
the file gets its name only if all of it is right.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from host_agent.wire.crc import crc32c
from host_agent.wire.failpoints import failpoint
from workers.journal.mapfile import PointMap
from workers.journal.pitmap import get_map
from workers.journal.points import Point
from workers.journal.reader import FrameInfo, Journal
from workers.journal.selectors import format_time
from workers.restore.errors import TargetExists, target_error
from workers.restore.frames import Columns, FramePieces
from workers.restore.image import READERS, RawImage
from workers.restore.progress import Progress, Silent

#: Frames that are written at once, and at most so many opened ones (4 MiB each) that wait for it.
_WRITERS = 2
_FRAMES_UNDER_WAY = 6


@dataclass(frozen=True)
class ExportOptions:
    """`force` replaces images that are there; `cache` is a folder for saved maps."""

    output: Path
    force: bool = False
    cache: Path | None = None
    digest: bool = False
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class ExportedDisk:
    """One image. `digest` is the BLAKE3 of the whole file, if it was wanted; sizes in bytes."""

    name: str
    path: Path
    size: int
    bytes_written: int
    digest: str

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "name": self.name,
            "path": str(self.path),
            "size": self.size,
            "bytes_written": self.bytes_written,
            "digest": f"blake3:{self.digest}" if self.digest else None,
            "verified": True,
        }


@dataclass(frozen=True)
class Exported:
    """What an export made. `seconds` from the map to the last image's name."""

    point: Point
    disks: list[ExportedDisk]
    seconds: float

    def as_dict(self, stream: str) -> dict[str, object]:
        """For --json."""
        return {
            "stream": stream,
            "point": self.point.as_dict(),
            "time": format_time(self.point.time),
            "disks": [disk.as_dict() for disk in self.disks],
            "bytes_written": sum(disk.bytes_written for disk in self.disks),
            "verified": True,
            "seconds": round(self.seconds, 3),
        }


def export(journal: Journal, point: Point, options: ExportOptions) -> Exported:
    """Write every disk of the point into the folder, verified.

    TargetExists, TargetFull, TargetFailed, VerifyFailed, PayloadDamaged, UnknownBase, StoreError.
    After an error no image has its name; what was begun ends in `.partial`.
    """
    began = time.monotonic()
    progress = options.progress
    progress.start("map", None, "records")
    found = get_map(journal, point, options.cache)
    images = [RawImage(options.output, disk.name, disk.size) for disk in found.disks]
    try:
        failpoint("export_after_map_before_images")
        _prepare(images, options)
        failpoint("export_after_images_before_data")
        progress.start("write", sum(disk.data_bytes for disk in found.disks), "bytes")
        _Writer(journal, found, images, progress).run()
        progress.start("verify", sum(image.size for image in images), "bytes")
        for image in images:
            failpoint("export_after_data_before_sync")
            image.sync()
            failpoint("export_after_sync_before_verify")
            image.verify(progress.advance, digest=options.digest)
        failpoint("export_after_verify_before_publish")
        for image in images:
            image.publish()
        failpoint("export_after_publish_before_told")
    finally:
        for image in images:
            image.close()
        found.close()
    disks = [ExportedDisk(i.name, i.path, i.size, i.bytes_written, i.digest) for i in images]
    return Exported(point, disks, time.monotonic() - began)


def _prepare(images: list[RawImage], options: ExportOptions) -> None:
    there = [str(image.path) for image in images if image.path.exists()]
    if there and not options.force:
        raise TargetExists(
            f"{' and '.join(there)} would be replaced.",
            hint="Name another --output folder, or say --force to replace what is there.",
        )
    for path in there:
        options.progress.say(f"{path} will be replaced once the new image is verified.")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise target_error(options.output, "made", error) from error
    for image in images:
        image.create()


class _Writer:
    """Writes the pieces frame by frame."""

    def __init__(
        self, journal: Journal, found: PointMap, images: list[RawImage], progress: Progress
    ) -> None:
        self._journal = journal
        self._map = found
        self._images = images
        self._progress = progress
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, "holdfast-verify")
        self._checks: deque[Future[int]] = deque()

    def run(self) -> None:
        """Write everything, and read back what is whole beside it."""
        for disk, pieces in self._map.blocks():
            self._images[disk].expect(pieces["start"], pieces["length"])
        under_way: deque[Future[None]] = deque()
        with (
            self._readers,
            ThreadPoolExecutor(_WRITERS, "holdfast-write") as pool,
            FramePieces(self._journal, self._map) as frames,
        ):
            try:
                # Pieces overlap nowhere, so their order does not matter.
                for frame, plain, piece in frames:
                    under_way.append(pool.submit(self._write_frame, frame, plain, piece))
                    if len(under_way) >= _FRAMES_UNDER_WAY:
                        under_way.popleft().result()
                    while self._checks and self._checks[0].done():
                        self._checks.popleft().result()
                while under_way:
                    under_way.popleft().result()
                while self._checks:
                    self._checks.popleft().result()
            finally:
                for waiting in under_way:
                    waiting.cancel()
                for check in self._checks:
                    check.cancel()

    def _write_frame(self, frame: FrameInfo, plain: bytes, piece: Columns) -> None:
        self._add_crcs(frame, plain, piece)
        end = piece["start"] + piece["length"]
        joins = (piece["disk"][1:] == piece["disk"][:-1]) & (piece["start"][1:] == end[:-1])
        edges = [0, *(np.flatnonzero(~joins) + 1).tolist(), len(end)]
        data = memoryview(plain)
        at, stop = piece["at"].tolist(), (piece["at"] + piece["length"]).tolist()
        start, ends, disk = piece["start"].tolist(), end.tolist(), piece["disk"].tolist()
        for low, high in pairwise(edges):
            buffers = [data[at[i] : stop[i]] for i in range(low, high)]
            length = ends[high - 1] - start[low]
            self._images[disk[low]].write(start[low], buffers, length)
            failpoint("export_after_piece_before_next")
        with self._lock:
            self._progress.advance(int(piece["length"].sum(dtype=np.uint64)))
            self._check_whole(piece)

    def _check_whole(self, piece: Columns) -> None:
        """Let what these pieces made whole be read back."""
        for disk in np.unique(piece["disk"]).tolist():
            own, image = piece["disk"] == disk, self._images[disk]
            for region in image.take(piece["start"][own], piece["length"][own]):
                self._checks.append(self._readers.submit(image.check, region))

    def _add_crcs(self, frame: FrameInfo, plain: bytes, piece: Columns) -> None:
        """Whole records keep the CRC that the tap took; parts of records get their own."""
        sums = self._journal.frame_sums(frame)
        row = np.searchsorted(sums.payload_at, piece["at"], "right") - 1
        whole = (sums.payload_at[row] == piece["at"]) & (
            sums.payload_length[row] == piece["length"]
        )
        crc = sums.crc[row].astype(np.uint32)
        data = memoryview(plain)
        for index in np.flatnonzero(~whole).tolist():
            at = int(piece["at"][index])
            crc[index] = crc32c(data[at : at + int(piece["length"][index])])
        for disk in np.unique(piece["disk"]).tolist():
            own = piece["disk"] == disk
            start, length = piece["start"][own], piece["length"][own]
            with self._lock:
                self._images[disk].crc.add(start, length.astype(np.uint64), crc[own])
                self._images[disk].bytes_written += int(length.sum(dtype=np.uint64))
