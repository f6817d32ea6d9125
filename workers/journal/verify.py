"""Reads back everything a journal has stored: hashes of whole segments, seals and checksums of all
data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from host_agent.wire.errors import ChainBroken, HoldfastError
from host_agent.wire.names import chain_name
from host_agent.wire.segment import verify_segment
from workers.journal.chain import DAMAGE, damaged
from workers.journal.errors import JournalDamaged
from workers.journal.reader import Journal
from workers.storage.errors import ObjectMissing

_AHEAD = 4


@dataclass
class Verified:
    """What a deep check found. Bytes are those of the objects read."""

    segments: int = 0
    frames: int = 0
    bytes: int = 0
    problems: list[HoldfastError] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "segments": self.segments,
            "frames": self.frames,
            "bytes": self.bytes,
            "problems": [problem.as_dict() for problem in self.problems],
        }


def verify(journal: Journal, advance: Callable[[int], None] | None = None) -> Verified:
    """Check every segment that the journal was opened from; `advance` hears the bytes read.

    Damage is in the result; a store that is away raises.
    """
    result = Verified()
    if journal.damage is not None:
        result.problems.append(journal.damage)
    last = journal.newest.place if journal.newest else 0
    with ThreadPoolExecutor(_AHEAD, "holdfast-verify") as pool:
        ahead: deque[Future[tuple[int, int, list[HoldfastError]]]] = deque()
        for place in range(journal.first_place, last + 1):
            ahead.append(pool.submit(_verify_segment, journal, place))
            if len(ahead) >= _AHEAD or place == last:
                while ahead and (len(ahead) >= _AHEAD or place == last):
                    size, frames, problems = ahead.popleft().result()
                    result.segments += 1
                    result.frames += frames
                    result.bytes += size
                    result.problems += problems
                    if advance is not None:
                        advance(size)
    return result


def _verify_segment(journal: Journal, place: int) -> tuple[int, int, list[HoldfastError]]:
    """(bytes, frames, problems) of one segment."""
    problems: list[HoldfastError] = []
    try:
        data = journal.store.get(chain_name(journal.identity, place))
        info = verify_segment(data)
        if info.place != place or info.identity_hash != journal.identity.hash:
            raise ChainBroken("It belongs to another place or to another stream.")
    except (ObjectMissing, JournalDamaged, *DAMAGE) as error:
        return 0, 0, [damaged(journal.identity, place, error)]
    places = journal.frame_column("place")
    first, end = np.searchsorted(places, np.array([place, place + 1], np.uint64)).tolist()
    for number in range(first, end):
        frame = journal.frame(number)
        sealed = data[frame.payload_offset : frame.payload_offset + frame.payload_sealed]
        try:
            journal.open_payload(frame, sealed)
        except JournalDamaged as error:
            problems.append(error)
    return len(data), end - first, problems
