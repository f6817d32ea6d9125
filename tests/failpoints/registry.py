"""The names of all failpoints, found in the sources."""

from __future__ import annotations

import re

from tests.architecture import sources

_CALL = re.compile(r'\b(?:crash::point|failpoint)\("([a-z0-9_]+)"\)')
#: Where a failpoint's process is known by its path.
_PLACES = {
    "tap": "host_agent/tap/src",
    "agent": "host_agent/",
    "ingest": "workers/ingest/",
    "store": "workers/storage/",
    "journal": "workers/journal/",
    "restore": "workers/restore/",
}


def failpoints() -> dict[str, set[str]]:
    """By the program that reaches them: `tap`, `agent`, `ingest`, `store`, `journal`, `restore`."""
    found: dict[str, set[str]] = {place: set() for place in _PLACES}
    for path in sources.with_suffix(".py", ".rs"):
        place = next((p for p, start in _PLACES.items() if str(path).startswith(start)), None)
        if place is not None:
            found[place] |= set(_CALL.findall(sources.text_of(path)))
    return found


def swept_elsewhere() -> set[str]:
    """Names that tests elsewhere reach in a way of their own: the sweeps leave them out."""
    found: set[str] = set()
    for path in sources.with_suffix(".py"):
        if path.parts[0] == "tests" and path.parts[1] in ("agent", "journal", "stream", "tap"):
            found |= set(re.findall(r'"([a-z0-9_]+_after_[a-z0-9_]+)"', sources.text_of(path)))
    return found
