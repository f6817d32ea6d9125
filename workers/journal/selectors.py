"""What a selector's text means: `checkpoint:ID | tag:TEXT | time:RFC3339 | seq:N | latest |
latest-write`.

Pure. A bare word is read in every way that it could be meant; `points.py` keeps those that fit.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from workers.journal.errors import BadSelector

NANOSECONDS = 1_000_000_000
_TIME = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})"
)
_CHECKPOINT = re.compile(r"[0-9a-f]{8,32}")
_SEQ = re.compile(r"(?:([0-9a-f]{4,32})/)?(\d{1,19})")
_HINT = (
    "Write checkpoint:ID, tag:TEXT, time:2026-01-31T12:00:00Z, seq:N, latest or latest-write;"
    " `holdfast restore list` shows what there is."
)


@dataclass(frozen=True)
class ByCheckpoint:
    """A checkpoint's id, or the first eight or more of its digits."""

    id: str


@dataclass(frozen=True)
class ByTag:
    """A tagged checkpoint's text."""

    tag: str


@dataclass(frozen=True)
class ByTime:
    """The newest moment that is not after `time`, nanoseconds UTC."""

    time: int


@dataclass(frozen=True)
class BySeq:
    """A sequence of the newest generation, or of the one whose name begins with `generation`."""

    seq: int
    generation: str = ""


@dataclass(frozen=True)
class Latest:
    """The newest checkpoint."""


@dataclass(frozen=True)
class LatestWrite:
    """The newest position that can be chosen at all."""


Selector = ByCheckpoint | ByTag | ByTime | BySeq | Latest | LatestWrite


def parse_time(text: str) -> int:
    """Nanoseconds UTC of an RFC 3339 time with its offset; BadSelector."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise BadSelector(
            f"{text!r:.60} is no time.",
            hint="Write it with its offset, such as 2026-01-31T12:00:00Z or …+02:00.",
        )
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, zone = match[7] or "", match[8]
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise BadSelector(f"{text!r:.60} is no time: {error}.") from None
    offset = 0
    if zone not in "Zz":
        offset = (int(zone[1:3]) * 60 + int(zone[4:6])) * 60 * (-1 if zone[0] == "-" else 1)
    seconds = calendar.timegm(moment.timetuple()) - offset
    if seconds < 0:
        raise BadSelector(f"{text!r:.60} lies before 1970.")
    return seconds * NANOSECONDS + int(fraction.ljust(9, "0") or 0)


def format_time(nanoseconds: int) -> str:
    """RFC 3339 in UTC with as many digits as are needed; `parse_time` gives the same number
    back."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    if seconds >= 253_402_300_800:  # the year 10000: RFC 3339 has no such time
        return f"{nanoseconds} ns"
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{rest:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"


def parse(text: str) -> list[Selector]:
    """All that the text may mean: one for a prefixed selector, one or more for a bare word."""
    kind, colon, rest = text.partition(":")
    if colon and kind in ("checkpoint", "tag", "time", "seq"):
        return [_prefixed(kind, rest)]
    if text == "latest":
        return [Latest()]
    if text == "latest-write":
        return [LatestWrite()]
    if not text or len(text) > 512:
        raise BadSelector("No moment was named.", hint=_HINT)
    return _bare(text)


def _prefixed(kind: str, rest: str) -> Selector:
    if kind == "time":
        return ByTime(parse_time(rest))
    if kind == "tag" and rest:
        return ByTag(rest)
    if kind == "checkpoint" and _CHECKPOINT.fullmatch(rest.lower()):
        return ByCheckpoint(rest.lower())
    if kind == "seq" and (match := _SEQ.fullmatch(rest)):
        return BySeq(int(match[2]), match[1] or "")
    raise BadSelector(f"{kind}:{rest!r:.60} names nothing.", hint=_HINT)


def _bare(text: str) -> list[Selector]:
    found: list[Selector] = [ByTag(text)]
    if _CHECKPOINT.fullmatch(text.lower()):
        found.append(ByCheckpoint(text.lower()))
    if match := _SEQ.fullmatch(text):
        found.append(BySeq(int(match[2]), match[1] or ""))
    if _TIME.fullmatch(text):
        found.append(ByTime(parse_time(text)))
    return found
