"""Index objects as bytes: what 256 places, or 256 times as many, hold, without their payloads.

FORMAT.md section 5. The same content always gives the same bytes, so that two who make one agree.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from host_agent.wire.errors import (
    ChecksumMismatch,
    LimitExceeded,
    UnsealFailed,
    WireError,
    WrongKey,
)
from host_agent.wire.limits import KIB, MIB
from host_agent.wire.names import Identity
from host_agent.wire.seal import decompress
from host_agent.wire.segment import TRAILER_BYTES, SegmentInfo, pack_trailer, parse_trailer
from workers.journal.timeline import Special

#: Places of an object of level 1, and objects of a level that one of the next stands for.
SPAN = 256

#: Level 2 stands for 65,536 places: eighteen hours at one a second, forty of them for 30 days.
LEVELS = 2

#: An object is read in one piece, and held in memory several times while it is opened.
INDEX_BYTES_MAX = 60 * MIB

#: Plain bytes: compressible content must not fill the memory.
PLAIN_BYTES_MAX = 512 * MIB

_CLEAR_BYTES_MAX = 8 * MIB
_SEAL_OVERHEAD_MAX = 64 * KIB
_MAGIC = b"HFINDEX\x01"
_HEAD = struct.Struct("<8sIIQQQ32s32s32s32sIIQ320s")
assert _HEAD.size == 184 + TRAILER_BYTES
_HASH_BYTES = 32
_INFO = b"holdfast index v1"
_SALT_CONTEXT = "holdfast index salt v1"
_LEVEL_ZSTD = 3

Columns = dict[str, NDArray[Any]]

#: Column to (type, whether differences are stored).
ROWS = {"time": ("<u8", True), "flags": ("u1", False)}
FRAMES = {
    "place": ("<u8", True),
    "records": ("<u4", False),
    "payload_offset": ("<u8", True),
    "payload_sealed": ("<u4", False),
    "payload_plain": ("<u4", False),
}
ENTRIES = {
    "row": ("<u8", True),
    "offset": ("<u8", True),
    "aux": ("<u8", True),
    "length": ("<u4", False),
    "payload_at": ("<u4", True),
    "frame": ("<u4", True),
    "disk": ("<u2", False),
    "op": ("u1", False),
}


@dataclass(frozen=True)
class IndexHead:
    """What can be read without a key. `newest` is the last segment's trailer, `previous` the hash
    of the segment before the first; `keys` holds the key objects of the generations by name."""

    level: int
    number: int
    identity_hash: bytes
    previous: bytes
    newest: SegmentInfo
    keys: dict[str, str] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)

    @property
    def first_place(self) -> int:
        """The first place that the object stands for."""
        return int((self.number - 1) * SPAN**self.level + 1)

    @property
    def last_place(self) -> int:
        """The last place."""
        return int(self.number * SPAN**self.level)


class GenerationPart(msgspec.Struct, frozen=True, array_like=True):
    """Records of one generation in the interval: how many, and those that a timeline looks at."""

    name: bytes
    records: int
    specials: list[Special]


@dataclass(frozen=True)
class IndexBody:
    """What is sealed. Rows and frames count from the object's first.

    `generations` are in the order of the chain. `anchor` and `anchor_hash` are those
    of the record hash, `since_anchor` the records after the anchor; `link` is what the reader has
    hashed of the frames' headers.
    """

    generations: list[GenerationPart]
    rows: Columns
    frames: Columns
    entries: Columns
    anchor: int
    anchor_hash: bytes
    since_anchor: bytes
    link: bytes


class _Clear(msgspec.Struct, frozen=True):
    keys: dict[str, str]
    hashes: list[str]


class _Plain(msgspec.Struct, frozen=True):
    generations: list[GenerationPart]
    rows: dict[str, bytes]
    frames: dict[str, bytes]
    entries: dict[str, bytes]
    anchor: int
    anchor_hash: bytes
    since_anchor: bytes
    link: bytes


def pack_columns(columns: Columns, kinds: dict[str, tuple[str, bool]]) -> dict[str, bytes]:
    """Columns as byte planes, of differences where `kinds` says so."""
    packed = {}
    for name, (kind, differs) in kinds.items():
        column = np.ascontiguousarray(columns[name], dtype=kind)
        if differs and len(column):
            # Modulo the type's size, so that every value comes back.
            column = np.concatenate([column[:1], column[1:] - column[:-1]]).astype(kind)
        planes = column.view(np.uint8).reshape(len(column), column.itemsize)
        packed[name] = planes.T.tobytes()
    return packed


def unpack_columns(packed: dict[str, bytes], kinds: dict[str, tuple[str, bool]]) -> Columns:
    """What `pack_columns` made; WireError, KeyError."""
    columns: Columns = {}
    for name, (kind, differs) in kinds.items():
        data, size = packed[name], np.dtype(kind).itemsize
        if len(data) % size:
            raise WireError("A column of an index object is cut off.")
        planes = np.frombuffer(data, np.uint8).reshape(size, len(data) // size)
        column = np.ascontiguousarray(planes.T).reshape(-1).view(kind)
        columns[name] = np.cumsum(column, dtype=kind) if differs else column
    if len({len(column) for column in columns.values()}) != 1:
        raise WireError("The columns of an index object are not equally long.")
    return columns


def _plain(body: IndexBody) -> bytes:
    return msgspec.msgpack.encode(
        _Plain(
            body.generations,
            pack_columns(body.rows, ROWS),
            pack_columns(body.frames, FRAMES),
            pack_columns(body.entries, ENTRIES),
            body.anchor,
            body.anchor_hash,
            body.since_anchor,
            body.link,
        )
    )


def _keys(data_key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    okm = HKDF(SHA256(), 64, salt, _INFO).derive(data_key)
    return AESGCM(okm[:32]), okm[32:]


def _authenticated(identity: Identity, head: bytes, clear: bytes) -> bytes:
    return b"HFAI1" + identity.seal_bytes + head + clear


def build_index(head: IndexHead, body: IndexBody, identity: Identity, data_key: bytes) -> bytes:
    """The object's bytes; LimitExceeded where it would be larger than is read in one piece.

    `data_key` is that of the generation of `head.newest`. The salt is a keyed hash of the content:
    the same content is sealed to the same bytes, other content under another key.
    """
    plain = _plain(body)
    clear = msgspec.json.encode(_Clear(head.keys, head.hashes))
    trailer = pack_trailer(head.newest)
    if len(plain) > PLAIN_BYTES_MAX or len(clear) > _CLEAR_BYTES_MAX:
        raise LimitExceeded(f"An index object of {len(plain)} bytes is larger than allowed.")
    content = b"".join([struct.pack("<IQ", head.level, head.number), trailer, clear, plain])
    salt_key = blake3(data_key, derive_key_context=_SALT_CONTEXT).digest()
    salt = blake3(content, key=salt_key).digest()
    aead, commitment = _keys(data_key, salt)
    packed = zstandard.ZstdCompressor(level=_LEVEL_ZSTD).compress(plain)
    fixed = _HEAD.pack(
        _MAGIC, 1, head.level, head.number, head.first_place, head.last_place, head.identity_hash,
        head.previous, salt, commitment, len(clear), len(packed) + 16, len(plain), trailer,
    )  # fmt: skip
    sealed = aead.encrypt(bytes(12), packed, _authenticated(identity, fixed, clear))
    whole = fixed + clear + sealed
    if len(whole) + _HASH_BYTES > INDEX_BYTES_MAX:
        raise LimitExceeded(f"An index object of {len(whole)} bytes is larger than allowed.")
    return whole + blake3(whole).digest()


@dataclass(frozen=True)
class SealedIndex:
    """An index object, its hash and clear part checked, its sealed part not opened yet."""

    head: IndexHead
    _salt: bytes
    _commitment: bytes
    _fixed: bytes
    _clear: bytes
    _sealed: bytes
    _plain_length: int

    def open(self, identity: Identity, data_key: bytes) -> IndexBody:
        """The sealed part; WrongKey, UnsealFailed, WireError."""
        aead, commitment = _keys(data_key, self._salt)
        if not hmac.compare_digest(commitment, self._commitment):
            raise WrongKey("The index object was not sealed with this data key.")
        known = _authenticated(identity, self._fixed, self._clear)
        try:
            packed = aead.decrypt(bytes(12), self._sealed, known)
        except InvalidTag:
            raise UnsealFailed(
                "The index object was changed after it was sealed.",
                hint="It can be made again from the journal: remove it.",
            ) from None
        return _parse_body(decompress(packed, self._plain_length))


def _parse_body(plain: bytes) -> IndexBody:
    try:
        found = msgspec.msgpack.decode(plain, type=_Plain)
        return IndexBody(
            found.generations,
            unpack_columns(found.rows, ROWS),
            unpack_columns(found.frames, FRAMES),
            unpack_columns(found.entries, ENTRIES),
            found.anchor,
            found.anchor_hash,
            found.since_anchor,
            found.link,
        )
    except (msgspec.DecodeError, KeyError, RecursionError) as error:
        raise WireError(f"An index object's content is malformed: {error}.") from None


def parse_index(data: bytes) -> SealedIndex:
    """Check an object's hash and read its clear part; WireError, ChecksumMismatch, no key
    needed."""
    if len(data) < _HEAD.size + _HASH_BYTES:
        raise WireError("The index object is cut off.")
    fixed = data[: _HEAD.size]
    fields = _HEAD.unpack(fixed)
    if fields[0] != _MAGIC or fields[1] != 1:
        raise WireError(
            "The object is no index object of a version that this software reads.",
            hint="Update this software, or remove the object: it can be made again.",
        )
    if blake3(data[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
        raise ChecksumMismatch("The index object does not match its hash.")
    level, number, first, last = fields[2:6]
    clear_length, sealed_length, plain_length = fields[10:13]
    clear = data[_HEAD.size : _HEAD.size + clear_length]
    sealed = data[_HEAD.size + clear_length : -_HASH_BYTES]
    if (len(clear), len(sealed)) != (clear_length, sealed_length) or plain_length > PLAIN_BYTES_MAX:
        raise WireError("The parts of the index object do not fill it.")
    if not 1 <= level <= 7 or not 1 <= number < 1 << 40:
        raise WireError("The index object has a number that none has.")
    try:
        keys = msgspec.json.decode(clear, type=_Clear)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"An index object's clear part is malformed: {error}.") from None
    newest = parse_trailer(fields[13])
    head = IndexHead(level, number, fields[6], fields[7], newest, keys.keys, keys.hashes)
    if (first, last, newest.place) != (head.first_place, head.last_place, head.last_place):
        raise WireError("The index object stands for other places than its name says.")
    return SealedIndex(head, fields[8], fields[9], fixed, clear, sealed, plain_length)
