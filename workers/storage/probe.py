"""Does this store have what a journal stands on? Asked once, when a writer starts.

Ordering and fencing rest on create-if-absent alone. A store that ignores the condition looks fine
until two writers meet; so they are made to meet here, on objects of a few bytes under a reserved
name, and a store on which two of them win is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from workers.storage.errors import ObjectMissing, StoreRefused, StoreUnavailable, StoreUnsuitable
from workers.storage.port import Created, ObjectStore

#: Writers that meet in a round, and rounds.
RACERS = 16
ROUNDS = 3

#: What credentials that may not delete can leave behind at most; then only the condition is tried.
PROBE_OBJECTS_MAX = 256

#: Another process may be probing beside us: its objects are left alone while they are this young.
PROBE_AGE_SECONDS = 3600

_NS = 1_000_000_000


@dataclass(frozen=True)
class ProbeTools:
    """What the probe takes from outside: a clock (ns since 1970) and random bytes."""

    wall_ns: Callable[[], int]
    token: Callable[[int], bytes]


def probe_prefix(tenant: str) -> str:
    """Where the probe's objects are: no group can have this name."""
    return f"{tenant}/_probe/"


def probe_store(store: ObjectStore, prefix: str, tools: ProbeTools) -> None:
    """Return if the store is fit for a journal.

    Raises StoreUnsuitable where it is not, other StoreErrors where it cannot be told.
    """
    left = _remove_old(store, prefix, tools)
    if left is not None:
        _check_second_refused(store, left, store.get(left), tools)
        return
    made = []
    try:
        for _ in range(ROUNDS):
            name = _new_name(prefix, tools)
            made.append(name)
            _race(store, name, tools)
        name = _new_name(prefix, tools)
        made.append(name)
        _check_found_after_missing(store, name, tools)
    finally:
        _remove(store, made)


def _new_name(prefix: str, tools: ProbeTools) -> str:
    seconds = tools.wall_ns() // _NS
    return f"{prefix}{seconds:010x}-{tools.token(8).hex()}"


def _made_at_seconds(name: str) -> int:
    text = name.rpartition("/")[2].partition("-")[0]
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _remove_old(store: ObjectStore, prefix: str, tools: ProbeTools) -> str | None:
    """Remove what earlier probes left; a name that is there if they left too many to go on."""
    now = tools.wall_ns() // _NS
    names = [entry.name for entry in store.list(prefix, limit=PROBE_OBJECTS_MAX)]
    old = [name for name in names if abs(now - _made_at_seconds(name)) > PROBE_AGE_SECONDS]
    removed = _remove(store, old)
    room = PROBE_OBJECTS_MAX - len(names) + removed
    return None if room > ROUNDS else names[-1]


def _remove(store: ObjectStore, names: list[str]) -> int:
    """Delete as far as it is allowed; a writer's credentials may well not be."""
    for count, name in enumerate(names):
        try:
            store.delete(name)
        except (StoreRefused, StoreUnavailable):
            return count
    return len(names)


def _race(store: ObjectStore, name: str, tools: ProbeTools) -> None:
    """Many create one name at once: one wins, the object is the winner's and stays it."""
    contents = [tools.token(32) for _ in range(RACERS)]
    with ThreadPoolExecutor(RACERS, thread_name_prefix="probe") as pool:
        outcomes = list(pool.map(lambda content: store.put_if_absent(name, content), contents))
    winners = [
        content
        for content, outcome in zip(contents, outcomes, strict=True)
        if outcome is Created.CREATED
    ]
    if len(winners) != 1:
        raise _unsuitable(store, f"{len(winners)} of {RACERS} writers created one object")
    _check_second_refused(store, name, winners[0], tools)


def _check_second_refused(store: ObjectStore, name: str, content: bytes, tools: ProbeTools) -> None:
    if store.put_if_absent(name, tools.token(32)) is Created.CREATED:
        raise _unsuitable(store, "an object that exists was created again")
    if store.get(name) != content:
        raise _unsuitable(store, "an object changed after it was created")


def _check_found_after_missing(store: ObjectStore, name: str, tools: ProbeTools) -> None:
    content = tools.token(32)
    try:
        store.get(name)
    except ObjectMissing:
        pass
    else:
        raise _unsuitable(store, "an object was found under a name that nobody used")
    if store.put_if_absent(name, content) is not Created.CREATED:
        raise _unsuitable(store, "a name that nobody used was taken")
    try:
        found = store.get(name)
    except ObjectMissing:
        raise _unsuitable(store, "an object was missing right after it was created") from None
    if found != content:
        raise _unsuitable(store, "an object was read with other bytes than were written")


def _unsuitable(store: ObjectStore, what: str) -> StoreUnsuitable:
    return StoreUnsuitable(
        f"{store.label} cannot keep a journal: {what}.",
        hint="Use a store that honours If-None-Match on writes (create if absent).",
    )
