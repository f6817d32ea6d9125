"""The objects of layers as bytes: lists, indexes and data. FORMAT.md section 5.

The same content always gives the same bytes, so that a fold that is run again makes what is there.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from host_agent.wire.errors import (
    ChecksumMismatch,
    LimitExceeded,
    UnsealFailed,
    WireError,
    WrongKey,
)
from host_agent.wire.limits import MIB
from host_agent.wire.names import Identity
from host_agent.wire.seal import decompress
from host_agent.wire.segment import SegmentInfo, parse_trailer
from workers.journal.columns import Columns, pack_columns, unpack_columns

KIND_LIST, KIND_INDEX, KIND_DATA = 1, 2, 3

#: Plain bytes of a piece of data: what one read on demand has to open.
PIECE_BYTES = 1 * MIB

#: Plain bytes of a data object: few requests, and one is held in memory several times.
PART_BYTES = 32 * MIB

#: Lists and indexes are read and held whole.
PLAIN_BYTES_MAX = 256 * MIB

OBJECT_BYTES_MAX = 60 * MIB
_MAGIC = b"HFLAYER\x01"
_HEAD = struct.Struct("<8sII16s32s32s32sIIQQ")
assert _HEAD.size == 152
_HASH_BYTES = 32
_TAG_BYTES = 16
_INFO = b"holdfast layer v1"
_SALT_CONTEXT = "holdfast layer salt v1"
_LEVEL_ZSTD = 3

#: Column to (type, whether differences are stored).
ENTRIES = {
    "offset": ("<u8", True),
    "length": ("<u4", False),
    "disk": ("<u2", False),
    "op": ("u1", False),
}
PIECES = {"sealed": ("<u4", False), "plain": ("<u4", False), "crc": ("<u4", False)}

Ref = tuple[str, int]


class LayerRef(msgspec.Struct, frozen=True):
    """A layer as its list names it: what it stands over (from 1; 0: zeroes), its end, its objects
    as (short name, bytes). `seal` is the generation whose data key seals them."""

    over: int
    generation: str
    seq: int
    place: int
    seal: str
    bytes: int
    indexes: list[Ref]
    parts: list[Ref]


class ListClear(msgspec.Struct, frozen=True):
    """What of a layer list can be read without a key."""

    number: int
    trailer: str
    keys: dict[str, str]
    layers: list[LayerRef]

    @property
    def newest(self) -> SegmentInfo:
        """The last segment that the layers stand for."""
        return parse_trailer(bytes.fromhex(self.trailer))

    def objects(self) -> list[Ref]:
        """All objects that the layers need."""
        return [ref for layer in self.layers for ref in [*layer.indexes, *layer.parts]]


class LayerEnd(msgspec.Struct, frozen=True):
    """What a layer's end looks like. `disks`: (number, name, size in bytes)."""

    time: int
    disks: list[tuple[int, str, int]]
    unreadable: list[tuple[int, int, int]]
    checkpoints: list[tuple[str, int, str, str, str | None]]


class GenerationEnd(msgspec.Struct, frozen=True, array_like=True):
    """A generation that lies in the layers, whole or up to `last_seq`."""

    name: bytes
    predecessor: bytes | None
    last_seq: int


class ListBody(msgspec.Struct, frozen=True):
    """What of a layer list is sealed."""

    generations: list[GenerationEnd]
    disk_names: list[str]
    ends: list[LayerEnd]
    anchor: int
    anchor_hash: bytes
    since_anchor: bytes
    link: bytes


@dataclass(frozen=True)
class IndexContent:
    """Part of a layer's index: entries by address, and the pieces of its data objects.

    `parts`: of each data object how many pieces it has, and its fixed fields, so that a read on
    demand needs one request.
    """

    entries: Columns
    pieces: Columns
    parts: list[tuple[int, bytes]] = field(default_factory=list)


class _Index(msgspec.Struct, frozen=True):
    entries: dict[str, bytes]
    frames: dict[str, bytes]
    parts: list[tuple[int, bytes]]


@dataclass(frozen=True)
class Sealer:
    """Who may seal and open: the stream, a generation and its data key."""

    identity: Identity
    generation: bytes
    data_key: bytes

    def keys(self, salt: bytes) -> tuple[AESGCM, bytes]:
        """(the key that a salt gives, its commitment)."""
        okm = HKDF(SHA256(), 64, salt, _INFO).derive(self.data_key)
        return AESGCM(okm[:32]), okm[32:]


@dataclass(frozen=True)
class Built:
    """An object's bytes, and the sealed length of each of its pieces."""

    data: bytes
    sealed: list[int]

    @property
    def hex(self) -> str:
        """The last part of its name."""
        return object_hex(self.data)


def object_hex(data: bytes) -> str:
    """The last part of an object's name: the first half of the hash that it ends in."""
    return data[-_HASH_BYTES:][:16].hex()


def build(kind: int, clear: bytes, pieces: Sequence[bytes | memoryview], sealer: Sealer) -> Built:
    """Seal an object; LimitExceeded where it would be larger than is read in one piece."""
    salt_key = blake3(sealer.data_key, derive_key_context=_SALT_CONTEXT).digest()
    hasher = blake3(struct.pack("<I", kind) + clear, key=salt_key)
    compressor = zstandard.ZstdCompressor(level=_LEVEL_ZSTD)
    packed = []
    for piece in pieces:
        hasher.update(struct.pack("<Q", len(piece)))
        hasher.update(piece)
        packed.append(compressor.compress(piece))
    salt = hasher.digest()
    aead, commitment = sealer.keys(salt)
    sealed = [len(piece) + _TAG_BYTES for piece in packed]
    fixed = _HEAD.pack(
        _MAGIC, 1, kind, sealer.generation, sealer.identity.hash, salt, commitment, len(clear),
        len(pieces), sum(sealed), sum(map(len, pieces)),
    )  # fmt: skip
    known = _authenticated(sealer.identity, fixed, clear)
    parts = [fixed, clear]
    parts += [aead.encrypt(_nonce(n), piece, known) for n, piece in enumerate(packed)]
    whole = b"".join(parts)
    if len(whole) + _HASH_BYTES > OBJECT_BYTES_MAX:
        raise LimitExceeded(f"A layer's object of {len(whole)} bytes is larger than allowed.")
    return Built(whole + blake3(whole).digest(), sealed)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


def _authenticated(identity: Identity, fixed: bytes, clear: bytes) -> bytes:
    return b"HFAL1" + identity.seal_bytes + fixed + clear


@dataclass(frozen=True)
class Head:
    """An object's fixed fields and clear part."""

    kind: int
    generation: bytes
    identity_hash: bytes
    salt: bytes
    commitment: bytes
    pieces: int
    sealed_length: int
    plain_length: int
    fixed: bytes
    clear_length: int
    clear: bytes = b""

    @property
    def sealed_at(self) -> int:
        """Where its sealed pieces begin."""
        return len(self.fixed) + self.clear_length

    @property
    def length(self) -> int:
        """Bytes of the whole object."""
        return self.sealed_at + self.sealed_length + _HASH_BYTES

    def open(self, number: int, sealed: bytes | memoryview, plain: int, sealer: Sealer) -> bytes:
        """A piece; WrongKey, UnsealFailed, WireError."""
        aead, commitment = sealer.keys(self.salt)
        if not hmac.compare_digest(commitment, self.commitment):
            raise WrongKey("The layer was not sealed with this data key.")
        known = _authenticated(sealer.identity, self.fixed, self.clear)
        try:
            packed = aead.decrypt(_nonce(number), sealed, known)
        except InvalidTag:
            raise UnsealFailed(
                "The layer was changed after it was sealed.",
                hint="Bring that object back from a copy of the store.",
            ) from None
        return decompress(packed, plain)


#: What a first read of an object must get: its fixed fields.
HEAD_BYTES = _HEAD.size


def parse_head(data: bytes | memoryview) -> Head:
    """The fixed fields; WireError. The clear part is not read."""
    if len(data) < _HEAD.size:
        raise WireError("The layer's object is cut off.")
    fixed = bytes(data[: _HEAD.size])
    magic, version, kind, generation, identity, salt, commitment, clear, pieces, sealed, plain = (
        _HEAD.unpack(fixed)
    )
    if magic != _MAGIC or version != 1:
        raise WireError(
            "The object is no layer's of a version that this software reads.",
            hint="Update this software.",
        )
    if kind not in (KIND_LIST, KIND_INDEX, KIND_DATA) or (kind == KIND_DATA and clear):
        raise WireError("The layer's object is of a kind that none has.")
    if _HEAD.size + clear + sealed + _HASH_BYTES > OBJECT_BYTES_MAX or plain > PLAIN_BYTES_MAX:
        raise LimitExceeded("The layer's object is larger than allowed.")
    return Head(kind, generation, identity, salt, commitment, pieces, sealed, plain, fixed, clear)


def parse_object(data: bytes) -> tuple[Head, bytes]:
    """A whole object, checked against its hash: its head with the clear part, and what is
    sealed."""
    head = parse_head(data)
    if head.length != len(data):
        raise WireError("The parts of the layer's object do not fill it.")
    if blake3(data[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
        raise ChecksumMismatch("The layer's object does not match its hash.")
    at = head.sealed_at
    clear = data[len(head.fixed) : at]
    return replace(head, clear=clear), data[at:-_HASH_BYTES]


def build_list(clear: ListClear, body: ListBody, sealer: Sealer) -> bytes:
    """A layer list; LimitExceeded."""
    return build(KIND_LIST, msgspec.json.encode(clear), [msgspec.msgpack.encode(body)], sealer).data


def parse_list(data: bytes, identity: Identity, number: int) -> tuple[Head, bytes, ListClear]:
    """A layer list without opening it: head, what is sealed, clear part. WireError."""
    head, sealed = parse_object(data)
    try:
        clear = msgspec.json.decode(head.clear, type=ListClear)
        newest = clear.newest
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"A layer list's clear part is malformed: {error}.") from None
    stated = (head.kind, clear.number, head.identity_hash, newest.identity_hash)
    if stated != (KIND_LIST, number, identity.hash, identity.hash):
        raise WireError("The layer list is another one, or of another stream.")
    if not clear.layers or any(not 0 <= r.over <= n for n, r in enumerate(clear.layers)):
        raise WireError("The layers of a list do not stand over each other.")
    return head, sealed, clear


def open_list(head: Head, sealed: bytes, sealer: Sealer) -> ListBody:
    """The sealed part of a layer list."""
    plain = head.open(0, sealed, head.plain_length, sealer)
    try:
        return msgspec.msgpack.decode(plain, type=ListBody)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(f"A layer list's content is malformed: {error}.") from None


def build_layer_index(content: IndexContent, sealer: Sealer) -> Built:
    """An index of a layer; LimitExceeded."""
    plain = msgspec.msgpack.encode(
        _Index(
            pack_columns(content.entries, ENTRIES),
            pack_columns(content.pieces, PIECES),
            content.parts,
        )
    )
    return build(KIND_INDEX, b"", [plain], sealer)


def open_layer_index(data: bytes, sealer: Sealer) -> IndexContent:
    """An index of a layer from its whole object; WireError, WrongKey, UnsealFailed."""
    head, sealed = parse_object(data)
    if head.kind != KIND_INDEX or head.identity_hash != sealer.identity.hash:
        raise WireError("The object is no index of a layer of this stream.")
    plain = head.open(0, sealed, head.plain_length, sealer)
    try:
        found = msgspec.msgpack.decode(plain, type=_Index)
        content = IndexContent(
            unpack_columns(found.entries, ENTRIES),
            unpack_columns(found.frames, PIECES),
            found.parts,
        )
    except (msgspec.DecodeError, UnicodeError, KeyError, RecursionError) as error:
        raise WireError(f"A layer's index is malformed: {error}.") from None
    if sum(count for count, _ in content.parts) != len(content.pieces["plain"]):
        raise WireError("A layer's index has other pieces than its parts.")
    return content


def build_data(pieces: Sequence[bytes | memoryview], sealer: Sealer) -> Built:
    """A data object of a layer."""
    return build(KIND_DATA, b"", pieces, sealer)
