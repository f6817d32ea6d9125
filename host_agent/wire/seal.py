"""Sealing and opening of frames: zstd, then AES-256-GCM under a connection's key. FORMAT.md 4."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from host_agent.wire import limits
from host_agent.wire.errors import LimitExceeded, UnsealFailed, WireError, WrongKey
from host_agent.wire.frame import (
    ENDS_INSIDE_REQUEST,
    HAS_BEGIN,
    HAS_END,
    SCOPE_COMMIT,
    TAG_BYTES,
    FrameHeader,
    Marker,
    decode_index,
    decode_indexes,
    encode_index,
)
from host_agent.wire.names import Identity
from host_agent.wire.packing import Packed, Packer
from host_agent.wire.record import Flag, Op, Records, check_records, writes_disk

PART_INDEX, PART_PAYLOAD = 0, 1
#: By so many records, as a share, whose payload another one has too, noise is worth compressing.
_REPEATS = 0.01


@dataclass(frozen=True)
class SealedFrame:
    """A frame ready for the wire and for a segment."""

    header: FrameHeader
    header_bytes: bytes
    index: bytes
    payload: bytes | memoryview


def frame_keys(data_key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """(AES-256 key, key commitment) of a connection's salt."""
    okm = HKDF(SHA256(), 64, salt, b"holdfast frame v1").derive(data_key)
    return okm[:32], okm[32:]


def _nonce(part: int, counter: int) -> bytes:
    return struct.pack("<IQ", part, counter)


def _authenticated(part: int, identity: Identity, header: bytes) -> bytes:
    return b"HFAD1" + bytes([part]) + identity.seal_bytes + header


class FrameSealer:
    """Seals one connection's frames. Not for several threads at once.

    The salt must be fresh from a random source for each connection: with the counter it makes each
    (key, nonce) pair unique, also over crashes and resends.
    """

    def __init__(self, data_key: bytes, identity: Identity, generation: bytes, salt: bytes) -> None:
        if len(salt) != 32 or len(generation) != 16:
            raise WireError("A salt has 32 bytes and a generation 16.")
        key, self.commitment = frame_keys(data_key, salt)
        self._key = AES256(key)
        self._identity = identity
        self._generation = generation
        self._salt = salt
        self._counter = 0
        self._packer = Packer()

    def seal(
        self,
        records: Records,
        payload: bytes,
        *,
        state: int,
        record_hash: bytes,
        markers: tuple[Marker, ...] = (),
    ) -> SealedFrame:
        """Seal consecutive RECORD rows with their payloads in order; WireError if not valid.

        `record_hash` is H of the last sequence, `state` the stream's after the last record. What a
        reader would refuse is refused here, because a stored frame cannot be mended.
        """
        if not len(records) or len(payload) > limits.FRAME_PLAIN_BYTES_MAX:
            raise LimitExceeded(
                f"{len(records)} records of {len(payload)} payload bytes do not fit a frame."
            )
        check_records(records, int(records[0]["seq"]))
        plain = encode_index(records)
        index = self._packer.pack(plain)
        body = self._pack(records, payload) if len(payload) else []
        counter, self._counter = self._counter, self._counter + 1
        header = FrameHeader(
            state=state,
            flags=_flags(records),
            records=len(records),
            generation=self._generation,
            salt=self._salt,
            commitment=self.commitment,
            counter=counter,
            first_seq=int(records[0]["seq"]),
            last_seq=int(records[-1]["seq"]),
            time_first=int(records[0]["time"]),
            time_last=int(records[-1]["time"]),
            record_hash=record_hash,
            index_sealed=_length(index) + TAG_BYTES,
            index_plain=len(plain),
            payload_sealed=_length(body) + TAG_BYTES if body else 0,
            payload_plain=len(payload),
            disk_bytes=_disk_bytes(records),
            markers=markers,
        )
        head = header.pack()
        _check_contents(header, records)
        return SealedFrame(
            header,
            head,
            bytes(self._encrypt(PART_INDEX, counter, index, head)),
            self._encrypt(PART_PAYLOAD, counter, body, head) if body else b"",
        )

    def _pack(self, records: Records, payload: bytes) -> Packed:
        crcs = np.sort(records["crc"][records["payload_length"] > 0])
        repeated = int(np.count_nonzero(crcs[1:] == crcs[:-1]))
        return self._packer.pack_payload(payload, repeats=repeated > _REPEATS * len(crcs))

    def _encrypt(self, part: int, counter: int, packed: Packed, head: bytes) -> memoryview:
        """Pieces sealed as one, into memory that nobody fills with zeroes first."""
        out: memoryview = np.empty(_length(packed) + TAG_BYTES, np.uint8).data
        sealing = Cipher(self._key, GCM(_nonce(part, counter))).encryptor()
        sealing.authenticate_additional_data(_authenticated(part, self._identity, head))
        at = 0
        for piece in packed:
            at += sealing.update_into(piece, out[at:])
        sealing.finalize()
        out[at:] = sealing.tag
        return out


def _length(packed: Packed) -> int:
    return sum(map(len, packed))


def _disk_bytes(records: Records) -> int:
    return int(records["length"][writes_disk(records)].sum(dtype=np.uint64))


def _check_agreement(header: FrameHeader, records: Records) -> None:
    """What the clear header says of the records must be so: others decide by it without a key."""
    _check_contents(header, records)
    said = (header.time_first, header.time_last, header.flags, header.disk_bytes)
    times = int(records[0]["time"]), int(records[-1]["time"])
    if said != (*times, _flags(records), _disk_bytes(records)):
        raise WireError("The frame's records do not agree with its header.")


def _check_contents(header: FrameHeader, records: Records) -> None:
    """What a header does not take from the records themselves: the payload and the markers."""
    if int(records["payload_length"].sum(dtype=np.uint64)) != header.payload_plain:
        raise WireError("The frame's payload has another length than its records say.")
    for marker in header.markers:
        record = records[marker.seq - header.first_seq]
        op = Op.COMMIT if marker.scope == SCOPE_COMMIT else Op.MARK
        if int(record["op"]) != op or int(record["time"]) != marker.time:
            raise WireError(f"There is no such marker at sequence {marker.seq}.")


def _agree(headers: Sequence[FrameHeader], records: Records, starts: Sequence[int]) -> bool:
    """Whether `_check_agreement` holds for each of the frames, whose records begin at `starts`."""
    first = np.array(starts[:-1])
    last = np.array(starts[1:]) - 1
    op, time = records["op"], records["time"]
    covered = np.where(writes_disk(records), records["length"], 0).astype(np.uint64)
    more = (records["flags"][last] & Flag.MORE) != 0
    found = np.stack(
        [
            np.add.reduceat(records["payload_length"].astype(np.uint64), first),
            time[first],
            time[last],
            np.add.reduceat(covered, first),
            HAS_BEGIN * np.logical_or.reduceat(op == Op.BEGIN, first).astype(np.uint64)
            | HAS_END * np.logical_or.reduceat(op == Op.END, first).astype(np.uint64)
            | ENDS_INSIDE_REQUEST * more.astype(np.uint64),
            records["seq"][first],
        ],
        axis=1,
    )
    said = [
        [h.payload_plain, h.time_first, h.time_last, h.disk_bytes, h.flags, h.first_seq]
        for h in headers
    ]
    if found.tolist() != said:
        return False
    for header, start in zip(headers, starts, strict=False):
        for marker in header.markers:
            at = start + marker.seq - header.first_seq
            wanted = Op.COMMIT if marker.scope == SCOPE_COMMIT else Op.MARK
            if int(op[at]) != wanted or int(time[at]) != marker.time:
                return False
    return True


def _flags(records: Records) -> int:
    flags = HAS_BEGIN if (records["op"] == Op.BEGIN).any() else 0
    flags |= HAS_END if (records["op"] == Op.END).any() else 0
    return flags | (ENDS_INSIDE_REQUEST if int(records[-1]["flags"]) & Flag.MORE else 0)


class FrameOpener:
    """Opens frames of one generation of one stream. May be used by several threads."""

    def __init__(self, data_key: bytes, identity: Identity) -> None:
        self._identity = identity
        self._keys = lru_cache(maxsize=256)(lambda salt: self._derive(data_key, salt))

    @staticmethod
    def _derive(data_key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
        key, commitment = frame_keys(data_key, salt)
        return AESGCM(key), commitment

    def open_index(
        self, header: FrameHeader, header_bytes: bytes, sealed: bytes | memoryview
    ) -> Records:
        """The frame's records, checked; UnsealFailed, WrongKey or WireError."""
        plain = self._open(PART_INDEX, header, header_bytes, sealed, header.index_plain)
        records = decode_index(plain, header.records, header.first_seq)
        _check_agreement(header, records)
        return records

    def open_indexes(
        self, frames: Sequence[tuple[FrameHeader, bytes, bytes | memoryview]]
    ) -> list[Records]:
        """The records of frames that follow one another, as `open_index` gives them, and raises."""
        counts = [header.records for header, _, _ in frames]
        if len(frames) < 2:
            return [self.open_index(*frame) for frame in frames]
        plains = [self._open(PART_INDEX, *frame, frame[0].index_plain) for frame in frames]
        starts = list(accumulate(counts, initial=0))
        try:
            whole = decode_indexes(plains, counts, frames[0][0].first_seq)
            agrees = _agree([header for header, _, _ in frames], whole, starts)
        except WireError:
            agrees = False
        if not agrees:
            # One by one, the same checks say what is wrong, and where.
            return [self.open_index(*frame) for frame in frames]
        return [whole[start:end] for start, end in pairwise(starts)]

    def open_payload(
        self, header: FrameHeader, header_bytes: bytes, sealed: bytes | memoryview
    ) -> bytes:
        """The records' payloads in order; UnsealFailed, WrongKey or WireError."""
        if not header.payload_plain:
            return b""
        return self._open(PART_PAYLOAD, header, header_bytes, sealed, header.payload_plain)

    def _open(
        self, part: int, header: FrameHeader, head: bytes, sealed: bytes | memoryview, plain: int
    ) -> bytes:
        expected = header.index_sealed if part == PART_INDEX else header.payload_sealed
        if len(sealed) != expected:
            raise WireError("A sealed part is cut off.")
        aead, commitment = self._keys(header.salt)
        if not hmac.compare_digest(commitment, header.commitment):
            raise WrongKey(
                f"The frame at sequence {header.first_seq} was not sealed with this data key.",
                hint="Check that the key file belongs to this tenant and group.",
            )
        try:
            packed = aead.decrypt(
                _nonce(part, header.counter), sealed, _authenticated(part, self._identity, head)
            )
        except InvalidTag:
            raise UnsealFailed(
                f"The frame at sequence {header.first_seq} of {self._identity} was changed "
                "after it was sealed.",
                hint="The stored object is damaged or was replaced; points in time before it are "
                "not affected.",
            ) from None
        return decompress(packed, plain)


def decompress(packed: bytes, plain: int) -> bytes:
    """Undo zstd; exactly `plain` bytes or WireError."""
    try:
        if zstandard.frame_content_size(packed) != plain:
            raise WireError("A part has another length than its header says.")
        data: bytes = zstandard.ZstdDecompressor().decompress(
            packed, max_output_size=plain, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise WireError(f"A part does not decompress: {error}.") from None
    if len(data) != plain:
        raise WireError("A part has another length than its header says.")
    return data
