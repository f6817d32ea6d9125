"""Reads back everything a journal has stored: hashes of whole segments, seals and checksums of all
data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from host_agent.wire.errors import ChainBroken, HoldfastError
from host_agent.wire.names import chain_name
from host_agent.wire.segment import verify_segment
from workers.journal.chain import DAMAGE, damaged
from workers.journal.errors import JournalDamaged, LayerDamaged
from workers.journal.layerfile import parse_object
from workers.journal.layers import LAYER_PLACES
from workers.journal.reader import Journal
from workers.storage.errors import ObjectMissing

_AHEAD = 4


@dataclass
class Verified:
    """What a deep check found. `layers`: their data objects; bytes of the objects read."""

    segments: int = 0
    layers: int = 0
    frames: int = 0
    bytes: int = 0
    problems: list[HoldfastError] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "segments": self.segments,
            "layers": self.layers,
            "frames": self.frames,
            "bytes": self.bytes,
            "problems": [problem.as_dict() for problem in self.problems],
        }


_Checked = tuple[int, int, list[HoldfastError]]


def verify(journal: Journal, advance: Callable[[int], None] | None = None) -> Verified:
    """Check every object that the journal was opened from, segments and layers; `advance` hears the
    bytes read.

    Damage is in the result; a store that is away raises.
    """
    result = Verified()
    if journal.damage is not None:
        result.problems.append(journal.damage)
    with ThreadPoolExecutor(_AHEAD, "holdfast-verify") as pool:
        ahead: deque[Future[_Checked]] = deque()

        def take() -> None:
            size, frames, problems = ahead.popleft().result()
            result.frames += frames
            result.bytes += size
            result.problems += problems
            if advance is not None:
                advance(size)

        for check, place in _checks(journal):
            ahead.append(pool.submit(check, journal, place))
            result.layers += check is _verify_part
            result.segments += check is _verify_segment
            if len(ahead) >= _AHEAD:
                take()
        while ahead:
            take()
    return result


def _checks(journal: Journal) -> Iterator[tuple[Callable[[Journal, int], _Checked], int]]:
    """What is to be checked: layers' data objects, then segments, by their places."""
    if journal.layers is not None:
        for number in range(len(journal.layers.parts)):
            yield _verify_part, LAYER_PLACES + number
    last = journal.newest.place if journal.newest else 0
    for place in range(journal.first_place, last + 1):
        yield _verify_segment, place


def _verify_part(journal: Journal, place: int) -> _Checked:
    """(bytes, frames, problems) of one data object of the layers."""
    name = journal.object_name(place)
    try:
        data = journal.store.get(name)
        parse_object(data)
    except (ObjectMissing, *DAMAGE) as error:
        return 0, 0, [LayerDamaged(name, error.message)]
    return _verify_frames(journal, place, data)


def _verify_segment(journal: Journal, place: int) -> _Checked:
    """(bytes, frames, problems) of one segment."""
    try:
        data = journal.store.get(chain_name(journal.identity, place))
        info = verify_segment(data)
        if info.place != place or info.identity_hash != journal.identity.hash:
            raise ChainBroken("It belongs to another place or to another stream.")
    except (ObjectMissing, JournalDamaged, *DAMAGE) as error:
        return 0, 0, [damaged(journal.identity, place, error)]
    return _verify_frames(journal, place, data)


def _verify_frames(journal: Journal, place: int, data: bytes) -> _Checked:
    """Open all frames of an object."""
    problems: list[HoldfastError] = []
    # Those of layers come first, and their places are the greatest.
    layered = journal.layers.frames if journal.layers is not None else 0
    places = journal.frame_column("place")
    if place >= LAYER_PLACES:
        places, layered = places[:layered], 0
    else:
        places = places[layered:]
    edges = np.searchsorted(places, np.array([place, place + 1], np.uint64)) + layered
    first, end = edges.tolist()
    for number in range(first, end):
        frame = journal.frame(number)
        sealed = data[frame.payload_offset : frame.payload_offset + frame.payload_sealed]
        try:
            journal.open_payload(frame, sealed)
        except JournalDamaged as error:
            problems.append(error)
    return len(data), end - first, problems
