"""One stream's analyser: fed with batches beside the stream, it keeps a report for each disk.

It samples: a batch costs no more than a bound, whatever it holds; nothing is done for each write.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from host_agent.analyser.content import BLOCK_BYTES, judge
from host_agent.analyser.signatures import ALIGNMENT, EVIDENCE, Finding, look, look_mbr
from host_agent.wire.record import Op, Records, writes_disk

#: Blocks of a batch whose content is judged.
SAMPLES_PER_BATCH = 4
#: Records of a batch that are searched for signatures.
LOOKS_PER_BATCH = 32
#: Blocks that the suspicion is a share of.
SUSPICION_BLOCKS = 512
#: With fewer judged blocks than this nothing is said of encryption.
SUSPICION_BLOCKS_MIN = 32
#: The change rate is that of so many seconds, of the stream's own time.
RATE_SECONDS = 60
#: Findings kept for a disk: a partition table of 128 entries fits.
FINDINGS_MAX = 160
_SECOND = 1_000_000_000


@dataclass
class _Disk:
    findings: dict[tuple[str, int], Finding] = field(default_factory=dict)
    encrypted: deque[bool] = field(default_factory=lambda: deque(maxlen=SUSPICION_BLOCKS))
    entropy: float = 0.0
    written: deque[tuple[int, int]] = field(default_factory=deque)
    total: int = 0


class Analyser:
    """Not for several threads at once."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._disks: dict[int, _Disk] = {}

    def feed(self, records: Records, payload: bytes | memoryview) -> None:
        """Look at a batch: RECORD rows and their payloads in order."""
        writes = writes_disk(records)
        if not writes.any():
            return
        ends = np.cumsum(records["payload_length"], dtype=np.uint64)
        starts = ends - records["payload_length"]
        data = np.flatnonzero((records["op"] == Op.WRITE) | (records["op"] == Op.SYNC))
        view = memoryview(payload)
        self._count(records if writes.all() else records[writes])
        self._search(records, starts, data, view)
        self._sample(records, starts, data, view)

    def _disk(self, number: int) -> _Disk:
        return self._disks.setdefault(number, _Disk())

    def _count(self, records: Records) -> None:
        second = int(records[-1]["time"]) // _SECOND
        disks = records["disk"]
        is_one = bool((disks == disks[0]).all())
        numbers = [int(disks[0])] if is_one else np.unique(disks).tolist()
        for number in numbers:
            of_disk = records if is_one else records[disks == number]
            written = int(of_disk["length"][of_disk["op"] == Op.WRITE].sum(dtype=np.uint64))
            disk = self._disk(number)
            disk.total += written
            disk.written.append((second, written))
            while disk.written and disk.written[0][0] <= second - RATE_SECONDS:
                disk.written.popleft()

    def _search(self, records: Records, starts: Any, data: Any, view: memoryview) -> None:
        """Search those records that hold a place where a possible volume shows what it is."""
        begin = records["offset"][data] % ALIGNMENT
        end = begin + records["length"][data]
        holds = end > ALIGNMENT
        for first, after in EVIDENCE:
            holds |= (begin <= first) & (end >= after)
        for row in data[holds][:LOOKS_PER_BATCH].tolist():
            record, place = records[row], int(starts[row])
            piece = view[place : place + int(record["length"])]
            self._look(self._disk(int(record["disk"])), piece, int(record["offset"]))

    def _look(self, disk: _Disk, piece: memoryview, at: int) -> None:
        volume = at - at % ALIGNMENT
        found = look(piece, volume, at - volume)
        after = volume + ALIGNMENT
        if after < at + len(piece):
            found += look(piece[after - at :], after)
        if at == 0:
            boot = look_mbr(piece)
            found += [boot] if boot else []
        for finding in found:
            key = (finding.kind, finding.volume)
            if key in disk.findings or len(disk.findings) < FINDINGS_MAX:
                disk.findings[key] = finding

    def _sample(self, records: Records, starts: Any, data: Any, view: memoryview) -> None:
        written = data[(records["op"][data] == Op.WRITE) & (records["length"][data] >= BLOCK_BYTES)]
        if not len(written):
            return
        step = max(1, len(written) // SAMPLES_PER_BATCH)
        chosen = written[int(self._random.integers(step)) :: step][:SAMPLES_PER_BATCH]
        for row in chosen.tolist():
            begin, disk = int(starts[row]), self._disk(int(records[row]["disk"]))
            randomness = judge(view[begin : begin + BLOCK_BYTES])
            disk.encrypted.append(randomness.looks_encrypted)
            disk.entropy += (randomness.entropy - disk.entropy) / len(disk.encrypted)

    def report(self) -> dict[int, dict[str, object]]:
        """What is known of each disk by number. Rates in bytes a second, offsets in bytes."""
        return {number: _report(disk) for number, disk in sorted(self._disks.items())}


def _report(disk: _Disk) -> dict[str, object]:
    findings = sorted(disk.findings.values(), key=lambda f: (f.volume, f.kind))
    systems = {f.system for f in findings if f.system}
    judged = len(disk.encrypted)
    enough = judged >= SUSPICION_BLOCKS_MIN
    return {
        "contains": [
            {
                "kind": f.kind,
                "volume_offset": f.volume,
                "evidence_offset": f.evidence,
                "confidence": f.confidence,
            }
            for f in findings
        ],
        "system": next(iter(systems)) if len(systems) == 1 else "unknown",
        "written_bytes": disk.total,
        "written_bytes_per_second": sum(size for _, size in disk.written) / RATE_SECONDS,
        "encryption_suspicion": sum(disk.encrypted) / judged if enough else None,
        "entropy_bits_per_byte": round(disk.entropy, 3) if judged else None,
        "judged_blocks": judged,
    }
