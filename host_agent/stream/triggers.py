"""Why a sync starts: a small, closed set. What each one reads, and how it ends.

A sync ends with END in the stream, and only there: until then old checkpoints stay good and no new
one is made. It may be paused, paced, and interrupted anywhere; what is still to be read stays
marked in the tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Trigger(StrEnum):
    """The causes of BEGIN."""

    FIRST_START = "first_start"
    RING_LOST = "ring_lost"
    UNCLEAN_STOP = "unclean_stop"
    DISK_ADDED = "disk_added"
    DISK_CHANGED = "disk_changed"
    RING_FULL = "ring_full"
    DISK_ERROR = "disk_error"
    AGENT_AWAY = "agent_away"
    JOURNAL_DIFFERS = "journal_differs"
    FORCED = "forced"
    MIRROR_LOST = "mirror_lost"


@dataclass(frozen=True)
class Meaning:
    """`why` and `reads` are sentences for people. `compares`: what is to be read may well be the
    same as in the journal, so that it is compared with a hash list where there is one."""

    why: str
    reads: str
    compares: bool


_ALL = "everything of every disk"
_MARKED = "what was written while records were dropped"

MEANINGS = {
    Trigger.FIRST_START: Meaning(
        "this host streams the group for the first time", _ALL, compares=True
    ),
    Trigger.RING_LOST: Meaning(
        "the ring is gone: the host restarted, or its memory was cleared",
        "what may have been written since it was last confirmed",
        compares=True,
    ),
    Trigger.UNCLEAN_STOP: Meaning(
        "the tap or the host ended without an orderly stop",
        "what was being written then, or everything where that is not known",
        compares=True,
    ),
    Trigger.DISK_ADDED: Meaning("a disk joined the group", "everything of that disk", False),
    Trigger.DISK_CHANGED: Meaning(
        "a disk is not as it was left: somebody changed it while it was not served",
        "everything of that disk",
        compares=True,
    ),
    Trigger.RING_FULL: Meaning(
        "the ring was full: the line, ingest or the store took less than was written",
        _MARKED,
        compares=False,
    ),
    Trigger.DISK_ERROR: Meaning(
        "a disk refused a write or a flush: what it holds there is not known",
        "the ranges concerned",
        compares=False,
    ),
    Trigger.AGENT_AWAY: Meaning("the agent was away for too long", _MARKED, compares=False),
    Trigger.JOURNAL_DIFFERS: Meaning(
        "the journal does not hold what this host had recorded", _ALL, compares=True
    ),
    Trigger.MIRROR_LOST: Meaning(
        "the mirror of a running machine ended, or nobody confirms it",
        "what QEMU still has to mirror",
        compares=False,
    ),
    Trigger.FORCED: Meaning("somebody asked for it", "what was asked for", compares=True),
}


def meaning_of(cause: str | None) -> Meaning | None:
    """What a cause means; None for none, or for one of a newer tap."""
    try:
        return MEANINGS[Trigger(cause)] if cause else None
    except ValueError:
        return None
