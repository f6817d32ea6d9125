"""What goes into the next frame: how many records, which markers, which state. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from host_agent.stream.errors import RingDamaged
from host_agent.wire import frame, limits
from host_agent.wire.frame import Marker
from host_agent.wire.record import Flag, Op, Records, State

#: Plain numbers: a member of an enum costs a look-up that a batch would make a hundred times.
_MARK, _COMMIT, _BEGIN, _END, _SYNC, _MORE = (
    int(value) for value in (Op.MARK, Op.COMMIT, Op.BEGIN, Op.END, Op.SYNC, Flag.MORE)
)
_KINDS = {
    "crash": frame.KIND_CRASH,
    "application": frame.KIND_APPLICATION,
    "tagged": frame.KIND_TAGGED,
}
_SCOPES = {"stream": frame.SCOPE_STREAM, "group": frame.SCOPE_GROUP}


@dataclass(frozen=True)
class FrameLimits:
    """Bounds of one frame: payload bytes before compression, records, markers."""

    plain: int = limits.FRAME_PLAIN_BYTES_MAX
    records: int = limits.FRAME_RECORDS_MAX
    markers: int = limits.FRAME_MARKERS_MAX


def count_for_frame(records: Records, bounds: FrameLimits) -> int:
    """How many of the first `records` fit one frame; at least one, which any frame can hold."""
    ends = np.cumsum(records["payload_length"], dtype=np.uint64)
    fits = int(np.searchsorted(ends, bounds.plain, side="right"))
    fits = max(1, min(fits, bounds.records, len(records)))
    marks = np.flatnonzero((records["op"][:fits] == _MARK) | (records["op"][:fits] == _COMMIT))
    if len(marks) > bounds.markers:
        fits = int(marks[bounds.markers])
    if int(records[fits - 1]["flags"]) & _MORE:
        # Ending between requests is tidier; a request larger than the frame cannot be kept whole.
        whole = np.flatnonzero((records["flags"][:fits] & _MORE) == 0)
        if len(whole):
            fits = int(whole[-1]) + 1
    return fits


def state_after(records: Records, before: State) -> State:
    """The stream's state after these records, as a frame states it."""
    turns = np.flatnonzero((records["op"] == _BEGIN) | (records["op"] == _END))
    if not len(turns):
        return before
    is_begin = int(records[int(turns[-1])]["op"]) == _BEGIN
    return State.SYNCING if is_begin else State.RECORDING


def markers_of(records: Records, payload: bytes) -> tuple[Marker, ...]:
    """The markers among the records, from their bodies; RingDamaged for a body that is none."""
    rows = np.flatnonzero((records["op"] == _MARK) | (records["op"] == _COMMIT))
    if not len(rows):
        return ()
    ends = np.cumsum(records["payload_length"], dtype=np.uint64)
    found = []
    for row in rows.tolist():
        end, record = int(ends[row]), records[row]
        body = payload[end - int(record["payload_length"]) : end]
        found.append(
            _marker(int(record["op"]), int(record["seq"]), int(record["time"]), body),
        )
    return tuple(found)


def _marker(op: int, seq: int, time: int, body: bytes) -> Marker:
    try:
        fields = msgspec.json.decode(body)
        checkpoint = bytes.fromhex(fields["checkpoint"])
        kind = _KINDS[fields.get("kind", "crash")]
        scope = frame.SCOPE_COMMIT if op == _COMMIT else _SCOPES[fields["scope"]]
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError):
        raise RingDamaged(f"The marker at {seq} has a body that is no marker's.") from None
    if len(checkpoint) != 16:
        raise RingDamaged(f"The marker at {seq} names its checkpoint wrongly.")
    return Marker(checkpoint, seq, time, scope, kind)


def sync_bytes(records: Records) -> int:
    """Payload bytes that a sync read, as against what guests wrote."""
    of_sync = records["payload_length"][records["op"] == _SYNC]
    return int(of_sync.sum(dtype=np.uint64))
