"""Opening what the host sealed: data keys from the bucket and the tenant's key, indexes,
payloads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from host_agent.wire.crc import crc32c, first_bad, span_crc
from host_agent.wire.errors import BadKeyFile, ChecksumMismatch, HoldfastError, WireError, WrongKey
from host_agent.wire.keys import JournalKey, open_data_key
from host_agent.wire.names import Identity, chain_name, key_name
from host_agent.wire.record import Records
from host_agent.wire.seal import FrameOpener
from host_agent.wire.segment import FrameRef, SegmentInfo
from workers.journal.chain import DAMAGE, Loaded, damaged
from workers.journal.errors import KeyObjectLost, SegmentLost
from workers.journal.timeline import wants_body
from workers.storage.errors import ObjectMissing, ObjectTooLarge
from workers.storage.port import ObjectStore


class KeyRing:
    """The data keys of a stream's generations, fetched when first needed. For several threads."""

    def __init__(self, store: ObjectStore, identity: Identity, key: JournalKey) -> None:
        self._store = store
        self._identity = identity
        self._key = key
        self._lock = threading.Lock()
        self._keys: dict[bytes, bytes] = {}
        self._openers: dict[bytes, FrameOpener] = {}
        self._offered: dict[bytes, bytes] = {}

    def offer(self, generation: str, data: bytes) -> None:
        """A copy of a key object, for when the object itself is lost. It is checked when it is
        opened."""
        with self._lock, suppress(ValueError):
            self._offered.setdefault(bytes.fromhex(generation), data)

    def key_object(self, generation: bytes) -> bytes:
        """The wrapped data key of a generation as it is stored; KeyObjectLost."""
        name = key_name(self._identity, generation)
        try:
            return self._store.get(name)
        except (ObjectMissing, ObjectTooLarge):
            if generation in self._offered:
                return self._offered[generation]
            raise KeyObjectLost(
                0,
                f"The data key {name} is missing: nothing sealed with it can be opened.",
                hint="Restore that object; it is never collected while the journal lasts.",
            ) from None

    def key_copy(self, generation: bytes) -> str:
        """A generation's key object for an object that carries a copy of it, which has to open:
        what is damaged is never copied. KeyObjectLost, WrongKey, BadKeyFile.
        """
        data = self.key_object(generation)
        open_data_key(data, self._key, self._identity, generation)
        return data.decode()

    def data_key(self, generation: bytes) -> bytes:
        """A generation's data key; KeyObjectLost, WrongKey, BadKeyFile."""
        with self._lock:
            if generation not in self._keys:
                data = self.key_object(generation)
                self._keys[generation] = open_data_key(data, self._key, self._identity, generation)
            return self._keys[generation]

    def opener(self, generation: bytes) -> FrameOpener:
        """Opens the frames of a generation."""
        key = self.data_key(generation)
        with self._lock:
            if generation not in self._openers:
                self._openers[generation] = FrameOpener(key, self._identity)
            return self._openers[generation]


#: What says that the key is wrong, rather than the data.
KEY_ERRORS = (WrongKey, BadKeyFile, KeyObjectLost)


@dataclass(frozen=True)
class OpenedFrame:
    """A frame's records, and the bodies by sequence that a timeline wants."""

    ref: FrameRef
    records: Records
    bodies: dict[int, bytes]


def joined_records(frames: Sequence[OpenedFrame]) -> Records:
    """The records of frames that follow one another: mostly the array that they were cut from."""
    parts = [frame.records for frame in frames]
    whole = parts[0].base
    if whole is None or sum(map(len, parts)) != len(whole):
        return np.concatenate(parts)
    return whole if all(part.base is whole for part in parts) else np.concatenate(parts)


@dataclass(frozen=True)
class OpenedSegment:
    """A segment's trailer and its frames, or what kept them from being opened."""

    info: SegmentInfo
    frames: list[OpenedFrame]
    problem: HoldfastError | None = None


class SegmentOpener:
    """Opens the indexes of segments, and the bodies that a timeline needs. For several threads."""

    def __init__(self, store: ObjectStore, identity: Identity, keys: KeyRing) -> None:
        self._store = store
        self._identity = identity
        self._keys = keys

    def open(self, segments: Sequence[Loaded]) -> list[OpenedSegment]:
        """Segments that follow one another, up to the first with a problem. StoreError."""
        try:
            return self._open_together(segments)
        except (ObjectMissing, *KEY_ERRORS, *DAMAGE):
            # One by one, the same checks say what is wrong, and where.
            opened: list[OpenedSegment] = []
            for segment in segments:
                opened.append(self._open_alone(segment))
                if opened[-1].problem is not None:
                    break
            return opened

    def _open_alone(self, segment: Loaded) -> OpenedSegment:
        info = segment.info
        try:
            if segment.frames:
                self._keys.opener(info.generation)
        except KEY_ERRORS as error:
            return OpenedSegment(info, [], error)
        try:
            return self._open_together([segment])[0]
        except ObjectMissing as error:
            lost = f"The segment at place {info.place} of {self._identity} is missing."
            return OpenedSegment(info, [], SegmentLost(info.place, f"{lost} {error.message}"))
        except DAMAGE as error:
            return OpenedSegment(info, [], damaged(self._identity, info.place, error))

    def _open_together(self, segments: Sequence[Loaded]) -> list[OpenedSegment]:
        records: list[Records] = []
        for generation, group in groupby(segments, key=lambda segment: segment.info.generation):
            frames = [frame for segment in group for frame in segment.frames]
            if frames:
                sealed = [(frame.header, frame.header_bytes, frame.index) for frame in frames]
                records += self._keys.opener(generation).open_indexes(sealed)
        left = iter(records)
        return [
            OpenedSegment(s.info, [self._open(s.info, frame, next(left)) for frame in s.frames])
            for s in segments
        ]

    def _open(self, info: SegmentInfo, frame: FrameRef, records: Records) -> OpenedFrame:
        rows = wants_body(records, frame.header.markers)
        bodies: dict[int, bytes] = {}
        if rows and frame.payload_length:
            sealed = self._store.get_range(
                chain_name(self._identity, info.place), frame.payload_offset, frame.payload_length
            )
            opener = self._keys.opener(info.generation)
            plain = opener.open_payload(frame.header, frame.header_bytes, sealed)
            ends = np.cumsum(records["payload_length"], dtype=np.uint64)
            for row in rows:
                end = int(ends[row])
                body = plain[end - int(records["payload_length"][row]) : end]
                if crc32c(body) != int(records["crc"][row]):
                    raise ChecksumMismatch(
                        f"The body of record {records['seq'][row]} does not match its checksum."
                    )
                bodies[int(records["seq"][row])] = body
        return OpenedFrame(frame, records, bodies)


def check_payload(
    plain: bytes, crcs: NDArray[np.uint32], lengths: NDArray[np.uint32], first_seq: int
) -> None:
    """Raise ChecksumMismatch unless each record's payload matches the CRC that the tap computed."""
    if int(lengths.sum(dtype=np.uint64)) != len(plain):
        raise WireError("The frame's payload has another length than its records say.")
    if span_crc(crcs, lengths) == crc32c(plain):
        return
    row = first_bad(plain, crcs, lengths)
    seq = first_seq + (row or 0)
    raise ChecksumMismatch(
        f"The data of record {seq} does not match the checksum that was taken when it was written."
    )
