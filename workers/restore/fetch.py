"""Frames' payloads, each fetched once: neighbours in one ranged read, several reads at a time,
memory bounded."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from host_agent.wire.limits import MIB
from workers.journal.errors import PayloadDamaged
from workers.journal.reader import FrameInfo, Journal, data_lost
from workers.storage.errors import ObjectMissing, ObjectTooLarge, ObjectTooShort

#: One ranged read: large enough that requests do not count, small enough to hold several.
READ_BYTES_MAX = 8 * MIB

#: Opened data of one read. Compressible data is many times its sealed size.
PLAIN_BYTES_MAX = 16 * MIB

#: Unwanted payloads between two wanted ones that are read along rather than asked for apart.
GAP_BYTES_MAX = 256 * 1024

#: Reads under way: with the sizes above at most about 100 MiB.
READS_AHEAD = 4


@dataclass
class Read:
    """One ranged read. Bytes `start` .. `end` of the segment at `place`."""

    place: int
    start: int
    end: int
    plain: int
    frames: list[FrameInfo]


def plan_reads(journal: Journal, numbers: Iterator[int]) -> Iterator[Read]:
    """Ranged reads for frames given in ascending order."""
    current: Read | None = None
    for number in numbers:
        frame = journal.frame(number)
        end = frame.payload_offset + frame.payload_sealed
        plain = frame.payload_plain
        if (
            current is not None
            and frame.place == current.place
            and frame.payload_offset - current.end <= GAP_BYTES_MAX
            and end - current.start <= READ_BYTES_MAX
            and current.plain + plain <= PLAIN_BYTES_MAX
        ):
            current.end, current.plain = end, current.plain + plain
            current.frames.append(frame)
            continue
        if current is not None:
            yield current
        current = Read(frame.place, frame.payload_offset, end, plain, [frame])
    if current is not None:
        yield current


def fetch(journal: Journal, read: Read) -> list[tuple[FrameInfo, bytes]]:
    """Carry out a read: the frames with their data, verified. PayloadDamaged, StoreUnavailable."""
    name = journal.object_name(read.place)
    try:
        data = memoryview(journal.store.get_range(name, read.start, read.end - read.start))
    except ObjectMissing as error:
        raise data_lost(journal, read.place, error) from error
    except (ObjectTooShort, ObjectTooLarge) as error:
        raise PayloadDamaged(
            read.place, f"The data of {name} cannot be read: {error.message}"
        ) from error
    opened = []
    for frame in read.frames:
        at = frame.payload_offset - read.start
        opened.append((frame, journal.open_payload(frame, data[at : at + frame.payload_sealed])))
    return opened


def fetch_all(journal: Journal, numbers: Iterator[int]) -> Iterator[tuple[FrameInfo, bytes]]:
    """All frames given in ascending order, with their data, in that order."""
    with ThreadPoolExecutor(READS_AHEAD, "holdfast-fetch") as pool:
        ahead: deque[Future[list[tuple[FrameInfo, bytes]]]] = deque()
        try:
            for read in plan_reads(journal, numbers):
                ahead.append(pool.submit(fetch, journal, read))
                if len(ahead) >= READS_AHEAD:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class FrameCache:
    """The frames that were opened last, for reads on demand. For several threads; each fetches
    once."""

    def __init__(self, journal: Journal, bytes_max: int = 64 * MIB) -> None:
        self._journal = journal
        self._bytes_max = bytes_max
        self._bytes = 0
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self._coming: dict[int, Future[bytes]] = {}
        self._lock = Lock()

    def get(self, number: int) -> bytes:
        """A frame's data, verified. PayloadDamaged, StoreUnavailable."""
        with self._lock:
            if number in self._frames:
                self._frames.move_to_end(number)
                return self._frames[number]
            coming = self._coming.get(number)
            mine: Future[bytes] = Future()
            if coming is None:
                self._coming[number] = mine
        if coming is not None:
            return coming.result()
        try:
            data = self._fetch(number)
        except BaseException as error:
            self._forget(number)
            mine.set_exception(error)
            raise
        self._keep(number, data)
        self._forget(number)
        mine.set_result(data)
        return data

    def _forget(self, number: int) -> None:
        with self._lock:
            del self._coming[number]

    def _fetch(self, number: int) -> bytes:
        frame = self._journal.frame(number)
        end = frame.payload_offset + frame.payload_sealed
        return fetch(self._journal, Read(frame.place, frame.payload_offset, end, 0, [frame]))[0][1]

    def _keep(self, number: int, data: bytes) -> None:
        with self._lock:
            self._frames[number] = data
            self._bytes += len(data)
            while self._bytes > self._bytes_max and len(self._frames) > 1:
                self._bytes -= len(self._frames.popitem(last=False)[1])
