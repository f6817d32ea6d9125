"""What a journal keeps, decided: pure, no store, no clock.

All times are ingest's (`committed_at` of segments, which never runs back along a chain),
nanoseconds UTC. A clock of this machine decides nothing; the store's only ever makes a history
longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from host_agent.wire.errors import HoldfastError
from workers.journal.boundary import Reason

NANOSECONDS = 1_000_000_000
HOUR_SECONDS = 3600

WINDOW_SECONDS_MIN = 1 * HOUR_SECONDS
WINDOW_SECONDS_MAX = 30 * 24 * HOUR_SECONDS
WINDOW_SECONDS = 24 * HOUR_SECONDS

#: How far ingest's clock may run before the store's: beyond that it is not believed.
AHEAD_SECONDS_MAX = 300

#: A window that was made shorter counts for deleting only after this: it may have been a mistake.
REDUCED_SECONDS = 24 * HOUR_SECONDS

#: Layers that are merged are at most this many times as large as what is laid over them: each byte
#: is then written again a few times in its life, and few layers lie over each other.
MERGE_FACTOR = 2


class BadPolicy(HoldfastError):
    """A history window or a size limit that no group can have."""

    code = "bad_policy"


@dataclass(frozen=True)
class Policy:
    """Of a group: its history window, and the most bytes that its journal may take (None: any)."""

    window_seconds: int = WINDOW_SECONDS
    size_bytes_max: int | None = None

    def __post_init__(self) -> None:
        if not WINDOW_SECONDS_MIN <= self.window_seconds <= WINDOW_SECONDS_MAX:
            raise BadPolicy(
                f"A history window of {self.window_seconds / HOUR_SECONDS:g} hours is not allowed.",
                hint="Name 1 to 720 hours.",
            )
        if self.size_bytes_max is not None and self.size_bytes_max <= 0:
            raise BadPolicy("A size limit is at least one byte.", hint="Leave it away for none.")


def history_now(committed_at: int, stated_at: int, store_at: int | None) -> int:
    """The time that ages are counted from.

    Ingest's newest: the chain's, or its newest statement about the stream. A stream that is gone
    keeps its last window. Where it is far ahead of the store's clock, the store's is taken: ages
    can only shrink.
    """
    now = max(committed_at, stated_at)
    if store_at is not None and now > store_at + AHEAD_SECONDS_MAX * NANOSECONDS:
        return store_at
    return now


def newest_before(committed_at: Callable[[int], int], first: int, last: int, limit: int) -> int:
    """The greatest place from `first` to `last` that was committed at `limit` or before; first - 1
    if none was. `committed_at` never runs back; it is asked about log2 times."""
    low, high = first - 1, last
    while low < high:
        middle = (low + high + 1) // 2
        if committed_at(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def place_by_size(sizes: Sequence[tuple[int, int]], layers_bytes: int, bytes_max: int) -> int:
    """The least place up to which all must be given up, so that layers and the segments after it
    fit into `bytes_max`; 0 if all fit. `sizes` are (place, bytes), ascending.

    Layers are not made smaller by giving up history; where they alone are too large, all of it
    goes.
    """
    room = max(0, bytes_max - layers_bytes)
    for place, size in reversed(sizes):
        room -= size
        if room < 0:
            return place
    return 0


@dataclass(frozen=True)
class Cut:
    """Up to which place history is given up, and why."""

    place: int
    reason: Reason


def choose_cut(by_window: int, by_size: int, newest: int) -> Cut:
    """The farther of the two. The newest segment always stays: protection goes on from it."""
    if by_size > by_window:
        return Cut(min(by_size, newest - 1), "size_limit")
    return Cut(min(by_window, newest - 1), "window")


def align(place: int, first: int, span: int) -> int:
    """A place at the end of an index object, where little is lost by going back to it: then no
    index object is cut. `first`: the first place that is not given up yet."""
    aligned = place - place % span
    return aligned if place - first >= 16 * span and aligned >= first else place


def layers_to_merge(over: Iterable[int], new_bytes: int) -> int:
    """How many of the layers under a new one become part of it. `over`: their bytes, newest
    first, as far as none of their ends is kept."""
    merged = 0
    for size in over:
        if size > MERGE_FACTOR * new_bytes:
            break
        new_bytes += size
        merged += 1
    return merged


@dataclass(frozen=True)
class Standing:
    """A boundary as collection sees it. Nanoseconds of the store's clock; seconds."""

    number: int
    first_place: int
    set_at: int
    window_seconds: int


def standing_boundary(
    boundaries: Sequence[Standing], now: int, grace_seconds: float
) -> Standing | None:
    """The newest boundary that has stood for the grace; one that made the window shorter stands
    for a day at least. `boundaries` ascending."""
    found, window = None, 0
    for boundary in boundaries:
        reduced = boundary.window_seconds < window
        wait = max(grace_seconds, REDUCED_SECONDS) if reduced else grace_seconds
        if now - boundary.set_at < wait * NANOSECONDS:
            break
        found, window = boundary, boundary.window_seconds
    return found


#: Objects that a run of collection deletes at most, whatever their share; more by share.
DELETES_MAX = 10_000
DELETES_SHARE_PERCENT = 1

#: More than this share of a stream's objects in one run is suspicious.
SUSPICIOUS_PERCENT = 5


def deletes_max(objects: int) -> int:
    """How many of a stream's objects one run may delete."""
    return max(DELETES_MAX, objects * DELETES_SHARE_PERCENT // 100)


def is_suspicious(deletes: int, objects: int) -> bool:
    """Whether a run would delete more than any by itself ought to."""
    return deletes > DELETES_MAX and deletes * 100 > objects * SUSPICIOUS_PERCENT
