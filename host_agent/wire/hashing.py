"""The record hash: a running BLAKE3 that re-batching does not change. FORMAT.md section 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3

from host_agent.wire.errors import WireError
from host_agent.wire.limits import HASH_GRID
from host_agent.wire.record import RECORD, Records

GENESIS = bytes(32)


class RecordHash:
    """H(s) as records are added, and the newest anchor (b, G(b)) from which it can be continued."""

    def __init__(self, anchor: int = 0, anchor_hash: bytes = GENESIS) -> None:
        if anchor < 0 or anchor % HASH_GRID or len(anchor_hash) != 32:
            raise WireError(f"{anchor} is not an anchor of the record hash.")
        self.anchor = anchor
        self.anchor_hash = anchor_hash
        self.position = anchor
        self._running: Any = blake3(anchor_hash)

    def update(self, records: Records) -> None:
        """Add records that follow `position` without a gap. RECORD or RING_ENTRY rows."""
        if records.dtype != RECORD:
            plain = np.empty(len(records), RECORD)
            for name in RECORD.names or ():
                plain[name] = records[name]
            records = plain
        if len(records) and int(records[0]["seq"]) != self.position + 1:
            raise WireError(
                f"Record {int(records[0]['seq'])} does not follow position {self.position}."
            )
        done = 0
        while done < len(records):
            take = min(len(records) - done, HASH_GRID - self.position % HASH_GRID)
            whole = np.ascontiguousarray(records[done : done + take])
            self._running.update(whole.view(np.uint8))
            self.position += take
            done += take
            if self.position % HASH_GRID == 0:
                self.anchor, self.anchor_hash = self.position, self._running.digest()
                self._running = blake3(self.anchor_hash)

    def digest(self) -> bytes:
        """H(position), 32 bytes."""
        if self.position == self.anchor:
            return self.anchor_hash
        return bytes(self._running.digest())

    def copy(self) -> RecordHash:
        """The same state, to go on apart."""
        twin = RecordHash(self.anchor, self.anchor_hash)
        twin.position = self.position
        twin._running = self._running.copy()
        return twin
