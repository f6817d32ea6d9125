"""Which frames a session accepts, decided by the clear header before any memory is taken.

A stream's positions are gap-free. A frame that continues it is accepted; one that repeats what is
held or stored is recognised by its record hash; everything else ends the session.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from host_agent.wire import limits
from host_agent.wire.frame import HAS_BEGIN, FrameHeader
from workers.ingest.errors import CloseCode, SessionEnded

#: Ends of frames that are remembered to tell repeated from different content. Two full segments of
#: the smallest frames that an agent has a reason to send.
_ENDS_MAX = 4096


class Verdict(Enum):
    """What to do with a frame's parts."""

    ACCEPT = "accept"
    REPEATED = "repeated"


@dataclass(frozen=True)
class StreamPoint:
    """Where a stream stands: a position, the record hash there, and the newest record's time."""

    seq: int
    record_hash: bytes
    time: int


class FrameGate:
    """Judges the frames of one connection, in the order of their arrival."""

    def __init__(
        self, generation: bytes, start: StreamPoint, used_salts: frozenset[bytes] = frozenset()
    ) -> None:
        self._generation = generation
        self._used_salts = used_salts
        self._salt: bytes | None = None
        self._commitment = b""
        self._counter = 0
        self._time = start.time
        self._next_seq = start.seq + 1
        self._ends: OrderedDict[int, bytes] = OrderedDict({start.seq: start.record_hash})

    @property
    def received_seq(self) -> int:
        """The last position that was accepted."""
        return self._next_seq - 1

    @property
    def salt(self) -> bytes | None:
        """The connection's salt, once a frame showed it."""
        return self._salt

    def judge(self, header: FrameHeader, body_length: int) -> Verdict:
        """Accept or recognise the frame; SessionEnded for every other."""
        self._check_form(header, body_length)
        self._check_seal(header)
        if header.first_seq == self._next_seq:
            self._check_continues(header)
            self._next_seq = header.last_seq + 1
            self._time = header.time_last
            self._ends[header.last_seq] = header.record_hash
            while len(self._ends) > _ENDS_MAX:
                self._ends.popitem(last=False)
            return Verdict.ACCEPT
        if header.last_seq < self._next_seq:
            return self._judge_repeated(header)
        raise SessionEnded(
            CloseCode.SEQUENCE_GAP,
            f"The frame begins at sequence {header.first_seq}, expected was {self._next_seq}.",
            hint="Send from there on; WELCOME says where after a reconnect.",
            retry_seconds=1.0,
        )

    def _check_form(self, header: FrameHeader, body_length: int) -> None:
        if header.length + header.parts_length != body_length:
            raise _bad("Its lengths do not add up to its message's.")
        if header.parts_length > 2 * limits.PART_SEALED_BYTES_MAX:
            raise _bad("It is larger than allowed.")
        if header.generation != self._generation:
            raise _bad("It is of another generation than the session's.")

    def _check_seal(self, header: FrameHeader) -> None:
        """One salt a connection, never one that was used before, and every counter once."""
        if self._salt is None:
            if header.salt in self._used_salts:
                raise _bad("Its salt was used by an earlier connection; keys would repeat.")
            self._salt, self._commitment = header.salt, header.commitment
        if (header.salt, header.commitment) != (self._salt, self._commitment):
            raise _bad("Its salt or key commitment changed within the connection.")
        if header.counter != self._counter:
            raise _bad(f"Its counter is {header.counter}, expected was {self._counter}.")
        self._counter += 1

    def _check_continues(self, header: FrameHeader) -> None:
        if header.first_seq == 1:
            if not header.flags & HAS_BEGIN:
                raise _bad("A generation must start with BEGIN.")
        elif header.time_first < self._time:
            raise _bad("Its records are older than those before it.")

    def _judge_repeated(self, header: FrameHeader) -> Verdict:
        known = self._ends.get(header.last_seq)
        if known is None:
            raise SessionEnded(
                CloseCode.SEQUENCE_GAP,
                f"Sequences {header.first_seq} to {header.last_seq} were received before, "
                f"expected was {self._next_seq}.",
                retry_seconds=1.0,
            )
        if known != header.record_hash:
            raise SessionEnded(
                CloseCode.EQUIVOCATION,
                f"The records up to sequence {header.last_seq} differ from those received before.",
                hint="Two agents may have the same identity: a copied or restored host.",
            )
        return Verdict.REPEATED


def _bad(what: str) -> SessionEnded:
    return SessionEnded(CloseCode.BAD_FRAME, f"A frame is refused. {what}", retry_seconds=5.0)
