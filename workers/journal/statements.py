"""What ingest stated of a stream: how far it was safe, by ingest's own clock. FORMAT.md section 5.

The newest statement tells an idle stream from one that was cut off, and a whole journal from one
that lost its end. Without one that can be read a restore says less, never something else.
"""

from __future__ import annotations

import re

import msgspec

from host_agent.wire.asof import decode_asof
from host_agent.wire.errors import WireError
from host_agent.wire.names import Identity, asof_name, asof_prefix
from workers.storage.errors import ObjectMissing, ObjectTooLarge
from workers.storage.port import ObjectStore

_NUMBER = re.compile(r"[0-9a-f]{16}")
_NUMBER_MAX = 1 << 40


class Statement(msgspec.Struct, frozen=True):
    """Of one stream. `time`: ingest's clock at the last probe that held, ns; `at`: when it was
    stated."""

    generation: str
    seq: int
    time: int
    state: str
    at: int


def read_statement(store: ObjectStore, identity: Identity) -> Statement | None:
    """The newest statement about the stream; None if there is none that can be read."""
    number = _newest(store, identity.tenant)
    if number is None:
        return None
    try:
        asof = decode_asof(store.get(asof_name(identity.tenant, number)))
    except (ObjectMissing, ObjectTooLarge, WireError):
        # Not part of the data: without it, a restore says that it cannot tell idle from cut off.
        return None
    stream = asof.streams.get(f"{identity.group}/{identity.host}")
    if stream is None:
        return None
    return Statement(stream.generation, stream.seq, stream.time, stream.state, asof.at)


def _next_after(store: ObjectStore, tenant: str, number: int) -> int | None:
    """The first statement after `number`."""
    after = asof_name(tenant, number) if number else ""
    for listed in store.list(asof_prefix(tenant), after, limit=1):
        last = listed.name.rpartition("/")[2]
        if _NUMBER.fullmatch(last):
            return int(last, 16)
    return None


def _newest(store: ObjectStore, tenant: str) -> int | None:
    """The newest statement's number, by doubling and halving: old ones may be collected."""
    found = _next_after(store, tenant, 0)
    if found is None:
        return None
    step = 1
    while (further := _next_after(store, tenant, found + step - 1)) is not None:
        found, step = further, step * 2
        if found >= _NUMBER_MAX:
            break
    low, high = found, found + step
    while low + 1 < high:
        middle = (low + high) // 2
        further = _next_after(store, tenant, middle - 1)
        if further is None:
            high = middle
        else:
            low = further
    return low
