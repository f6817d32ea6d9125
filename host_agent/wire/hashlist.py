"""Hash lists: what each 64 KiB of the disks held at one place of the chain. FORMAT.md section 5.

Who has the disk and the key can tell which blocks the journal has already, without reading the
journal's data. A list is several objects, each sealed by itself, so that neither who makes it nor
who uses it holds more than one of them.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from host_agent.wire.errors import ChecksumMismatch, UnsealFailed, WireError, WrongKey
from host_agent.wire.limits import (
    DISK_BYTES_MAX,
    HASH_BLOCK_BYTES,
    HASH_PART_BLOCKS,
    HASH_PART_BYTES_MAX,
    STREAM_DISKS_MAX,
)
from host_agent.wire.names import Identity
from host_agent.wire.seal import decompress
from host_agent.wire.segment import TRAILER_BYTES, SegmentInfo, pack_trailer, parse_trailer

HASH_BYTES = 16

_MAGIC = b"HFHASHES"
_HEAD = struct.Struct("<8sII32s32s32sII320s")
_HEAD_BYTES = 120 + TRAILER_BYTES
assert _HEAD.size == _HEAD_BYTES
_OBJECT_HASH_BYTES = 32
_INFO = b"holdfast hash list v1"
_SALT_CONTEXT = "holdfast hash list salt v1"
_BLOCK_CONTEXT = "holdfast block hash v1"
_ZEROES = bytes(HASH_BLOCK_BYTES)
_SAMPLES = 16

Kinds = NDArray[np.uint8]
Hashes = NDArray[np.uint8]

#: What is known of a block: it is zeroes, it has a hash, or nothing.
ZERO, HASHED, UNKNOWN = 0, 1, 2


class ListedDisk(msgspec.Struct, frozen=True, array_like=True):
    """A disk of the list. `parts`: (first block, number of the object that begins there)."""

    number: int
    name: str
    size: int
    parts: list[tuple[int, int]]


class Directory(msgspec.Struct, frozen=True):
    """Part 0: the disks of that moment. What no part covers is zeroes."""

    disks: list[ListedDisk]


class _Blocks(msgspec.Struct, frozen=True):
    disk: int
    first: int
    kinds: bytes
    hashes: bytes


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of a disk: kinds, and a row of 16 bytes for each (zeroes without hash)."""

    first: int
    kinds: Kinds
    hashes: Hashes

    def __post_init__(self) -> None:
        assert len(self.kinds) == len(self.hashes)


def blocks_of(size: int) -> int:
    """How many blocks a disk of `size` bytes has; the last may be short."""
    return -(-size // HASH_BLOCK_BYTES)


def block_key(data_key: bytes) -> bytes:
    """The key of the block hashes of lists that are sealed with this data key."""
    return bytes(blake3(data_key, derive_key_context=_BLOCK_CONTEXT).digest())


def hash_blocks(data: memoryview, key: bytes) -> tuple[Kinds, Hashes]:
    """Kind and hash of each block of `data`, whose last may be short."""
    count = blocks_of(len(data))
    kinds = np.full(count, HASHED, np.uint8)
    for at in _maybe_zero(data, count):
        block = data[at * HASH_BLOCK_BYTES : (at + 1) * HASH_BLOCK_BYTES]
        if bytes(block) == _ZEROES[: len(block)]:
            kinds[at] = ZERO
    digests = []
    for at in np.flatnonzero(kinds).tolist():
        block = data[at * HASH_BLOCK_BYTES : (at + 1) * HASH_BLOCK_BYTES]
        digests.append(blake3(block, key=key).digest(length=HASH_BYTES))
    return kinds, _spread(kinds, b"".join(digests))


def _maybe_zero(data: memoryview, count: int) -> list[int]:
    """Blocks whose samples are zero, and the short one."""
    whole = len(data) // HASH_BLOCK_BYTES
    words = np.frombuffer(data, np.uint64, whole * (HASH_BLOCK_BYTES // 8))
    sampled = words.reshape(whole, HASH_BLOCK_BYTES // 8)[
        :, :: HASH_BLOCK_BYTES // 8 // _SAMPLES
    ].any(axis=1)
    found: list[int] = np.flatnonzero(~sampled).tolist()
    return found + list(range(whole, count))


def _spread(kinds: Kinds, packed: bytes) -> Hashes:
    rows = np.zeros((len(kinds), HASH_BYTES), np.uint8)
    rows[kinds == HASHED] = np.frombuffer(packed, np.uint8).reshape(-1, HASH_BYTES)
    return rows


# --- sealing


def _keys(data_key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    okm = HKDF(SHA256(), 64, salt, _INFO).derive(data_key)
    return AESGCM(okm[:32]), okm[32:]


def _authenticated(identity: Identity, head: bytes) -> bytes:
    return b"HFAH1" + identity.seal_bytes + head


@dataclass(frozen=True)
class ListSeal:
    """What a list is bound to: the stream, its data key, and the segment whose end it is of."""

    identity: Identity
    data_key: bytes
    newest: SegmentInfo

    def seal(self, number: int, plain: bytes) -> bytes:
        """One object. The same content is sealed to the same bytes, other content under another
        key."""
        trailer = pack_trailer(self.newest)
        salt_key = blake3(self.data_key, derive_key_context=_SALT_CONTEXT).digest()
        content = struct.pack("<I", number) + trailer + plain
        salt = blake3(content, key=salt_key).digest()
        aead, commitment = _keys(self.data_key, salt)
        packed = zstandard.ZstdCompressor(level=1).compress(plain)
        head = _HEAD.pack(
            _MAGIC, 1, number, self.identity.hash, salt, commitment,
            len(packed) + 16, len(plain), trailer,
        )  # fmt: skip
        sealed = aead.encrypt(bytes(12), packed, _authenticated(self.identity, head))
        whole = head + sealed
        return whole + blake3(whole).digest()


def pack_directory(directory: Directory) -> bytes:
    """The content of part 0."""
    return msgspec.msgpack.encode(directory)


def pack_blocks(disk: int, blocks: Blocks) -> bytes:
    """The content of another part; `disk` is the disk's order in the directory."""
    hashes = blocks.hashes[blocks.kinds == HASHED].tobytes()
    return msgspec.msgpack.encode(_Blocks(disk, blocks.first, blocks.kinds.tobytes(), hashes))


@dataclass(frozen=True)
class SealedPart:
    """An object of a list, checked and not opened yet."""

    number: int
    newest: SegmentInfo
    _identity_hash: bytes
    _salt: bytes
    _commitment: bytes
    _head: bytes
    _sealed: bytes
    _plain_length: int

    def open(self, identity: Identity, data_key: bytes) -> bytes:
        """The content; WrongKey, UnsealFailed, WireError."""
        if self._identity_hash != identity.hash:
            raise WireError("The hash list is that of another stream.")
        aead, commitment = _keys(data_key, self._salt)
        if not hmac.compare_digest(commitment, self._commitment):
            raise WrongKey("The hash list was not sealed with this data key.")
        try:
            packed = aead.decrypt(bytes(12), self._sealed, _authenticated(identity, self._head))
        except InvalidTag:
            raise UnsealFailed(
                "The hash list was changed after it was sealed.",
                hint="It can be made again: remove it, then run holdfast journal hashes.",
            ) from None
        return decompress(packed, self._plain_length)


def parse_part(data: bytes) -> SealedPart:
    """Check an object's form and hash, no key needed; WireError, ChecksumMismatch."""
    if not _HEAD_BYTES + _OBJECT_HASH_BYTES < len(data) <= HASH_PART_BYTES_MAX:
        raise WireError("The hash list has a length that none has.")
    head = data[:_HEAD_BYTES]
    magic, version, number, identity, salt, commitment, sealed, plain, trailer = _HEAD.unpack(head)
    if magic != _MAGIC or version != 1:
        raise WireError(
            "The object is no hash list of a version that this software reads.",
            hint="Update this software, or remove the object: it can be made again.",
        )
    if blake3(data[:-_OBJECT_HASH_BYTES]).digest() != data[-_OBJECT_HASH_BYTES:]:
        raise ChecksumMismatch("The hash list does not match its hash.")
    body = data[_HEAD_BYTES:-_OBJECT_HASH_BYTES]
    if len(body) != sealed or plain > HASH_PART_BYTES_MAX:
        raise WireError("The hash list's lengths do not agree.")
    newest = parse_trailer(trailer)
    return SealedPart(number, newest, identity, salt, commitment, head, body, plain)


_T = TypeVar("_T")


def _decode(plain: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(plain, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(f"A hash list's content is malformed: {error}.") from None


def parse_directory(plain: bytes) -> Directory:
    """Part 0's content; WireError."""
    found = _decode(plain, Directory)
    for disk in found.disks:
        firsts = [first for first, _ in disk.parts]
        is_sound = 0 <= disk.size <= DISK_BYTES_MAX and 0 <= disk.number < STREAM_DISKS_MAX
        if not is_sound or firsts != sorted(set(firsts)) or any(f < 0 for f in firsts):
            raise WireError("A hash list's directory contradicts itself.")
    return found


def parse_blocks(plain: bytes, disk: int, first: int) -> Blocks:
    """Another part's content, which must be of that disk and begin there; WireError."""
    found = _decode(plain, _Blocks)
    kinds: NDArray[Any] = np.frombuffer(found.kinds, np.uint8)
    count = int((kinds == HASHED).sum())
    is_sound = len(kinds) <= HASH_PART_BLOCKS and not (kinds > HASHED).any()
    if not is_sound or len(found.hashes) != count * HASH_BYTES:
        raise WireError("A part of a hash list contradicts itself.")
    if (found.disk, found.first) != (disk, first):
        raise WireError("A part of a hash list is that of other blocks.")
    return Blocks(first, kinds, _spread(kinds, found.hashes))
