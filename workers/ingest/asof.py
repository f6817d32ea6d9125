"""Statements: what the bucket alone can tell of how far each stream is safe.

At most once a minute, and only when one of them changed, one object for all streams of the tenant.
An idle stream makes no segments; this is how a restore tells it from one that was cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from host_agent.wire.asof import Statement, decode_asof, encode_asof
from host_agent.wire.errors import WireError
from host_agent.wire.failpoints import failpoint
from host_agent.wire.names import asof_name, asof_prefix
from workers.ingest.facts import StreamFacts
from workers.storage.errors import ObjectMissing
from workers.storage.port import Created, ObjectStore

#: Processes that state at the same moment each need one more number.
_TRIES_MAX = 16


@dataclass(frozen=True)
class AsofName:
    """Whose statements, and who makes them."""

    tenant: str
    writer: bytes


class AsofWriter:
    """Keeps the newest statements of all streams, and writes them. Calls of the store block."""

    def __init__(self, store: ObjectStore, name: AsofName) -> None:
        self._store = store
        self._tenant = name.tenant
        self._writer = name.writer
        self._number = 0
        self._streams: dict[str, Statement] = {}
        self._stated: dict[str, Statement] = {}

    def load(self) -> None:
        """Take over what was stated before: streams that are away now keep their last statement."""
        self._number = newest_number(self._next_after)
        if not self._number:
            return
        try:
            asof = decode_asof(self._store.get(asof_name(self._tenant, self._number)))
        except (ObjectMissing, WireError):
            return  # never a part of the data: a lost statement is made again
        self._streams = {
            name: Statement(s.generation, s.seq, s.time, "silent")
            for name, s in asof.streams.items()
        }
        self._stated = dict(asof.streams)

    def gather(self, streams: Iterable[StreamFacts], now: float) -> bool:
        """Take the streams' facts as of the monotonic time `now`; whether one is to be written."""
        for facts in streams:
            if facts.rpo.safe is not None:
                name = f"{facts.identity.group}/{facts.identity.host}"
                self._streams[name] = Statement(
                    facts.generation.hex(),
                    facts.stored,
                    facts.rpo.safe.wall_ns,
                    facts.state_word(now),
                )
        return self._streams != self._stated

    def write(self, wall_ns: int) -> int:
        """Create the next object with what was gathered; returns its number."""
        stated = dict(self._streams)
        data = encode_asof(wall_ns, self._writer, stated)
        for _ in range(_TRIES_MAX):
            self._number += 1
            name = asof_name(self._tenant, self._number)
            failpoint("statement_after_gathered_before_create")
            if self._store.put_if_absent(name, data) is Created.CREATED:
                failpoint("statement_after_create_before_kept")
                self._stated = stated
                break
            self._number = max(self._number, newest_number(self._next_after))
        return self._number

    def _next_after(self, number: int) -> int | None:
        folder = asof_prefix(self._tenant)
        after = asof_name(self._tenant, number) if number else ""
        for entry in self._store.list(folder, after, limit=1):
            try:
                return int(entry.name.removeprefix(folder), 16)
            except ValueError:
                return None
        return None


def newest_number(next_after: Callable[[int], int | None]) -> int:
    """The last of numbered objects whose beginning may have been collected; 0 for none."""
    newest, step = 0, 1
    while (found := next_after(newest + step - 1)) is not None:
        newest, step = found, step * 2
    low, high = newest, newest + step - 1  # nothing is beyond high
    while low < high:
        middle = (low + high + 1) // 2
        found = next_after(middle - 1)
        low, high = (low, middle - 1) if found is None else (found, high)
    return low
