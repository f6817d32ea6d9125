"""Gives recovered disks their bytes: what a guest asks for first, everything else behind.

Data goes through a window of shared memory. A range that the guest waits for is put together from
the map's pieces; behind it, frames are fetched in their stored order, each once, and each of their
pieces that is still missing is filled. What is left in the end is zeroes.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from host_agent.wire import tapctl
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.limits import FRAME_PLAIN_BYTES_MAX, MIB
from host_agent.wire.tapctl import Fields
from workers.journal.mapfile import MapDisk, Pieces, cut_pieces
from workers.journal.reader import Journal
from workers.restore.errors import TapFailed
from workers.restore.fetch import FrameCache
from workers.restore.frames import Columns, FramePieces
from workers.restore.livemap import LiveMap
from workers.restore.tap_client import TapChannel

#: Slots of the window that answer guests, each as large as the largest fill.
DEMAND_SLOTS = 8
SLOT_BYTES = MIB

#: Slots that hold a whole frame's data while its pieces are filled behind.
BEHIND_SLOTS = 2

#: Frames that are fetched at once for guests: a range may lie in as many as it has blocks.
_FETCHERS = 8

#: A run of zeroes at least as long is told, not sent.
ZERO_RUN_BYTES = 64 * 1024

#: Zeroes that are told at once behind: many small gaps of it must not hold up a guest.
ZERO_STEP_BYTES = 64 * MIB

#: What nobody asked for waits so long for the first answer to a guest: a machine that starts reads
#: at once, and making the whole map would take both its processors from it.
_FIRST_SECONDS = 0.5

_WINDOW_BYTES = DEMAND_SLOTS * SLOT_BYTES + BEHIND_SLOTS * FRAME_PLAIN_BYTES_MAX
_RETRY_SECONDS = 2.0
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Window:
    """The shared memory: slots are taken and given back."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("holdfast-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, _WINDOW_BYTES)
        # The tap maps it too: nobody may cut it under its feet.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        self.bytes = mmap.mmap(self.fd, _WINDOW_BYTES)
        self._demand: SimpleQueue[int] = SimpleQueue()
        self._behind: SimpleQueue[int] = SimpleQueue()
        for slot in range(DEMAND_SLOTS):
            self._demand.put(slot * SLOT_BYTES)
        for slot in range(BEHIND_SLOTS):
            self._behind.put(DEMAND_SLOTS * SLOT_BYTES + slot * FRAME_PLAIN_BYTES_MAX)

    @contextmanager
    def demand_slot(self) -> Iterator[int]:
        """A slot of SLOT_BYTES: its place in the window."""
        at = self._demand.get()
        try:
            yield at
        finally:
            self._demand.put(at)

    @contextmanager
    def behind_slot(self) -> Iterator[int]:
        """A slot for a frame's data."""
        at = self._behind.get()
        try:
            yield at
        finally:
            self._behind.put(at)

    def close(self) -> None:
        """Give the memory back."""
        self.bytes.close()
        os.close(self.fd)


class Provider:
    """Serves the needs of one group of recovered disks."""

    def __init__(self, journal: Journal, found: LiveMap, socket: Path) -> None:
        """`socket` is the group's own, as `recover` answered it."""
        self._journal = journal
        self._map = found
        self._disks = {disk.name: disk for disk in found.disks}
        self._frames = FrameCache(journal)
        self._window = Window()
        self._needs = ThreadPoolExecutor(DEMAND_SLOTS, "holdfast-need")
        self._fetchers = ThreadPoolExecutor(_FETCHERS, "holdfast-fetch")
        self._waiting = 0
        self._calm = threading.Condition()
        self._stopping = threading.Event()
        self._has_answered = threading.Event()
        self.filled = threading.Event()
        self.problem: HoldfastError | None = None
        self._channel = TapChannel(socket, self._on_event)
        self._channel.call("provide", {"window_bytes": _WINDOW_BYTES}, [self._window.fd])
        self._behind: threading.Thread | None = None

    def fill_behind(self) -> None:
        """Start to fetch what nobody asked for."""
        self._behind = threading.Thread(target=self._fill, name="holdfast-fill", daemon=True)
        self._behind.start()

    def close(self) -> None:
        """Stop serving; reads of what is missing fail from here on."""
        self._stopping.set()
        self._has_answered.set()
        with self._calm:
            self._calm.notify_all()
        self._channel.close()
        self._needs.shutdown(wait=True, cancel_futures=True)
        self._fetchers.shutdown(wait=True, cancel_futures=True)
        if self._behind is not None:
            self._behind.join()
        self._window.close()

    # -- what a guest waits for

    def _on_event(self, event: Fields) -> None:
        if event.get("event") != "need" or self._stopping.is_set():
            return
        with self._calm:
            self._waiting += 1
        self._needs.submit(self._serve, event)

    def _serve(self, event: Fields) -> None:
        ticket = event.get("ticket")
        try:
            disk, offset, length = _check_need(event, self._disks)
            self._provide(disk, offset, length)
            self._channel.call("served", {"ticket": ticket})
        except HoldfastError as error:
            self._refuse(ticket, error)
        finally:
            self._has_answered.set()
            with self._calm:
                self._waiting -= 1
                self._calm.notify_all()

    def _refuse(self, ticket: object, error: HoldfastError) -> None:
        """The guest's read fails, and says why; a tap that is gone needs no answer."""
        self.problem = error
        if not isinstance(error, TapFailed):
            self._channel.post("refuse", {"ticket": ticket, "message": str(error)})

    def _provide(self, disk: MapDisk, offset: int, length: int) -> None:
        """Fill a range: what no piece covers is told as zeroes where it is long."""
        end = offset + length
        pieces = self._map.find(disk, offset, length)
        stops = pieces["start"] + pieces["length"]
        at = offset
        while at < end:
            row = int(np.searchsorted(stops, np.uint64(at), "right"))
            start = int(pieces["start"][row]) if row < len(pieces) else end
            if start - at >= ZERO_RUN_BYTES or start == end:
                self._channel.call(
                    "fill", {"disk": disk.name, "offset": at, "length": start - at, "at": None}
                )
                at = start
            else:
                stop = min(at + SLOT_BYTES, end)
                self._provide_slot(disk, (at, stop), cut_pieces(pieces, at, stop))
                at = stop

    def _provide_slot(self, disk: MapDisk, ends: tuple[int, int], pieces: Pieces) -> None:
        """One fill of at most SLOT_BYTES, from its pieces."""
        start, length = ends[0], ends[1] - ends[0]
        with self._window.demand_slot() as slot:
            self._window.bytes[slot : slot + length] = bytes(length)
            wanted = sorted(set(pieces["frame"].tolist()))
            if len(wanted) > 1:
                data_of = dict(
                    zip(wanted, self._fetchers.map(self._frames.get, wanted), strict=True)
                )
            else:
                data_of = {frame: self._frames.get(frame) for frame in wanted}
            for offset, size, frame, at in pieces.tolist():
                data = memoryview(data_of[frame])[at : at + size]
                place = slot + offset - start
                self._window.bytes[place : place + size] = data
            self._channel.call(
                "fill", {"disk": disk.name, "offset": start, "length": length, "at": slot}
            )

    # -- everything else

    def _fill(self) -> None:
        self._has_answered.wait(_FIRST_SECONDS)
        while not self._stopping.is_set():
            try:
                self._fill_frames()
                self._fill_rest()
            except HoldfastError as error:
                if self._stopping.is_set():
                    return
                self.problem = error
                if not error.retryable:
                    return
            else:
                self.filled.set()
                return
            self._stopping.wait(_RETRY_SECONDS)

    def _fill_frames(self) -> None:
        with FramePieces(self._journal, self._map.whole()) as frames:
            for frame, plain, columns in frames:
                self._fill_frame(plain, columns)
                if self._stopping.is_set():
                    raise TapFailed(f"Stopped at frame {frame.number}.")

    def _fill_frame(self, plain: bytes, columns: Columns) -> None:
        self._let_guests_pass()
        names = [disk.name for disk in self._map.disks]
        with self._window.behind_slot() as slot:
            self._window.bytes[slot : slot + len(plain)] = plain
            answers: list[Future[Fields]] = []
            for disk, start, length, at in _runs(columns):
                fill = {"disk": names[disk], "offset": start, "length": length, "at": slot + at}
                answers.append(self._channel.post("fill", fill))
                if len(answers) >= 64:
                    tapctl.answer(answers.pop(0).result())
                    self._let_guests_pass()
            for answer in answers:
                tapctl.answer(answer.result())

    def _fill_rest(self) -> None:
        """All data is there: what is missing still is zeroes. The tap finds the gaps of a range."""
        for disk in self._map.disks:
            at = 0
            while not self._stopping.is_set():
                self._let_guests_pass()
                found = self._channel.call("missing", {"disk": disk.name, "from": at})
                if not int(found.get("length", 0)):
                    break
                at = int(found["offset"])
                end = min(max(at + int(found["length"]), at + ZERO_STEP_BYTES), disk.size)
                zeroes = {"disk": disk.name, "offset": at, "length": end - at, "at": None}
                self._channel.call("fill", zeroes)
                at = end
        if self._stopping.is_set():
            raise TapFailed("Stopped.")

    def _let_guests_pass(self) -> None:
        with self._calm:
            self._calm.wait_for(lambda: not self._waiting or self._stopping.is_set(), timeout=1.0)


def _check_need(event: Fields, disks: dict[str, MapDisk]) -> tuple[MapDisk, int, int]:
    disk, offset, length = event.get("disk"), event.get("offset"), event.get("length")
    if not isinstance(offset, int) or not isinstance(length, int) or disk not in disks:
        raise WireError("The tap asked for a range of no disk.")
    if offset < 0 or length <= 0 or offset + length > disks[disk].size:
        raise WireError("The tap asked for a range beyond the disk.")
    return disks[disk], offset, length


def _runs(columns: Columns) -> Iterator[tuple[int, int, int, int]]:
    """(disk, start, length, at) of a frame's pieces, neighbours on disk and in the frame joined."""
    end = columns["start"] + columns["length"]
    joined = (
        (columns["disk"][1:] == columns["disk"][:-1])
        & (columns["start"][1:] == end[:-1])
        & (columns["at"][1:] == (columns["at"] + columns["length"])[:-1])
    )
    first = np.concatenate([[0], np.flatnonzero(~joined) + 1])
    last = np.append(first[1:], len(end)) - 1
    rows = zip(
        columns["disk"][first].tolist(),
        columns["start"][first].tolist(),
        (end[last] - columns["start"][first]).tolist(),
        columns["at"][first].tolist(),
        strict=True,
    )
    yield from rows
