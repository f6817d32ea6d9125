"""Index objects as bytes: what 256 places, or 256 times as many, hold, without their payloads.

FORMAT.md section 5. A summary at the front is all that opening a journal reads; what a map needs
lies in sections, each sealed by itself, so that a part of the address space is one ranged read. The
same content always gives the same bytes, so that two who make one agree.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum

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
from host_agent.wire.limits import KIB, MIB
from host_agent.wire.names import Identity
from host_agent.wire.seal import decompress
from host_agent.wire.segment import TRAILER_BYTES, SegmentInfo, pack_trailer, parse_trailer
from workers.journal.timeline import Special

#: Places of an object of level 1, and objects of a level that one of the next stands for.
SPAN = 256

#: Level 2 stands for 65,536 places: eighteen hours at one a second, forty of them for 30 days.
LEVELS = 2

#: What a store reads in one piece, and what a writer holds in memory.
INDEX_BYTES_MAX = 60 * MIB

#: Plain bytes of a section: compressible content must not fill the memory.
PLAIN_BYTES_MAX = 64 * MIB

#: Entries of a section: small, so that little is read along; their columns are about 500 KiB.
SECTION_ENTRIES = 16 * KIB
#: Rows (times, flags) and frames of a section.
SECTION_ROWS = 256 * KIB
SECTION_FRAMES = 16 * KIB

_CLEAR_BYTES_MAX = 8 * MIB
_SUMMARY_PLAIN_MAX = 64 * MIB
_MAGIC = b"HFINDEX\x01"
_HEAD = struct.Struct("<8sIIQQQ32s32s32s32sIIQ320s")
HEAD_BYTES = _HEAD.size
assert HEAD_BYTES == 184 + TRAILER_BYTES
_HASH_BYTES = 32
_TAG_BYTES = 16
_INFO = b"holdfast index v1"
_SALT_CONTEXT = "holdfast index salt v1"
_LEVEL_ZSTD = 3


class Kind(IntEnum):
    """What a section holds."""

    MARKS = 1
    ROWS = 2
    FRAMES = 3
    ANCHOR = 4
    ENTRIES = 5


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


class Section(msgspec.Struct, frozen=True, array_like=True):
    """A section, in the object's order. `sealed` and `plain` in bytes; `count` rows of columns.

    ROWS: `low` is the first row. FRAMES: `low` is the first frame, `high` its first row. ENTRIES:
    of the disk number `disk`, all that overlaps `low` .. `high`, cut to it.
    """

    kind: int
    count: int
    sealed: int
    plain: int
    disk: int = 0
    low: int = 0
    high: int = 0


class Summary(msgspec.Struct, frozen=True):
    """What opening a journal needs.

    `generations` are in the order of the chain. `anchor` and `anchor_hash` are those of the record
    hash; `link` is what the reader has hashed of the frames' headers.
    """

    generations: list[GenerationPart]
    frames: int
    anchor: int
    anchor_hash: bytes
    link: bytes
    sections: list[Section]

    @property
    def records(self) -> int:
        """Records of the interval."""
        return sum(part.records for part in self.generations)


class _Clear(msgspec.Struct, frozen=True):
    keys: dict[str, str]
    hashes: list[str]


def _keys(data_key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    okm = HKDF(SHA256(), 64, salt, _INFO).derive(data_key)
    return AESGCM(okm[:32]), okm[32:]


def _authenticated(number: int, identity: Identity, head: bytes, clear: bytes = b"") -> bytes:
    return b"HFAI1" + struct.pack("<I", number) + identity.seal_bytes + head + clear


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


class IndexBuilder:
    """Takes sections in their order, then gives the object's bytes."""

    def __init__(self, level: int, number: int, data_key: bytes) -> None:
        """`data_key` is that of the generation of the last segment."""
        self._data_key = data_key
        salt_key = blake3(data_key, derive_key_context=_SALT_CONTEXT).digest()
        self._salt = blake3(struct.pack("<IQ", level, number), key=salt_key)
        self._packed: list[bytes] = []
        self._bytes = 0
        self.sections: list[Section] = []

    def add(self, section: Section, plain: bytes) -> None:
        """The next section; its lengths are filled in. LimitExceeded."""
        packed = zstandard.ZstdCompressor(level=_LEVEL_ZSTD).compress(plain)
        self._salt.update(struct.pack("<Q", len(plain)))
        self._salt.update(plain)
        self._packed.append(packed)
        self._bytes += len(packed) + _TAG_BYTES
        if self._bytes > INDEX_BYTES_MAX or len(plain) > PLAIN_BYTES_MAX:
            raise LimitExceeded(f"An index object of {self._bytes} bytes is larger than allowed.")
        lengths = {"sealed": len(packed) + _TAG_BYTES, "plain": len(plain)}
        self.sections.append(msgspec.structs.replace(section, **lengths))

    def finish(self, head: IndexHead, summary: Summary, identity: Identity) -> bytes:
        """The object; LimitExceeded where it would be larger than is read in one piece.

        The salt is a keyed hash of the content: the same content is sealed to the same bytes, other
        content under another key.
        """
        plain = msgspec.msgpack.encode(summary)
        clear = msgspec.json.encode(_Clear(head.keys, head.hashes))
        trailer = pack_trailer(head.newest)
        for part in (trailer, clear, plain):
            self._salt.update(struct.pack("<Q", len(part)))
            self._salt.update(part)
        salt = self._salt.digest()
        aead, commitment = _keys(self._data_key, salt)
        packed = zstandard.ZstdCompressor(level=_LEVEL_ZSTD).compress(plain)
        first = len(packed) + _TAG_BYTES
        length = HEAD_BYTES + len(clear) + first + self._bytes + _HASH_BYTES
        if length > INDEX_BYTES_MAX or max(len(clear), first) > _CLEAR_BYTES_MAX:
            raise LimitExceeded(f"An index object of {length} bytes is larger than allowed.")
        fixed = _HEAD.pack(
            _MAGIC, 1, head.level, head.number, head.first_place, head.last_place,
            head.identity_hash, head.previous, salt, commitment, len(clear), first, length, trailer,
        )  # fmt: skip
        parts = [fixed, clear]
        parts.append(aead.encrypt(_nonce(0), packed, _authenticated(0, identity, fixed, clear)))
        for number, data in enumerate(self._packed, 1):
            known = _authenticated(number, identity, fixed)
            parts.append(aead.encrypt(_nonce(number), data, known))
        whole = b"".join(parts)
        return whole + blake3(whole).digest()


@dataclass(frozen=True)
class SealedIndex:
    """An index object whose head was read. Nothing of it is believed before it was opened."""

    head: IndexHead
    length: int
    _salt: bytes
    _commitment: bytes
    _fixed: bytes
    _clear: bytes
    _summary: bytes

    def open(self, identity: Identity, data_key: bytes) -> OpenIndex:
        """The summary; WrongKey, UnsealFailed, WireError."""
        aead, commitment = _keys(data_key, self._salt)
        if not hmac.compare_digest(commitment, self._commitment):
            raise WrongKey("The index object was not sealed with this data key.")
        known = _authenticated(0, identity, self._fixed, self._clear)
        packed = _unseal(aead, 0, self._summary, known)
        try:
            length = zstandard.frame_content_size(packed)
        except zstandard.ZstdError as error:
            raise WireError(f"An index object's summary is malformed: {error}.") from None
        if not 0 < length <= _SUMMARY_PLAIN_MAX:
            raise WireError("An index object's summary is longer than any.")
        try:
            summary = msgspec.msgpack.decode(decompress(packed, length), type=Summary)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise WireError(f"An index object's summary is malformed: {error}.") from None
        first = HEAD_BYTES + len(self._clear) + len(self._summary)
        whole = first + sum(section.sealed for section in summary.sections) + _HASH_BYTES
        if whole != self.length:
            raise WireError("The sections of the index object do not fill it.")
        return OpenIndex(self.head, summary, _Opener(aead, identity, self._fixed), first)


def _unseal(aead: AESGCM, number: int, sealed: bytes | memoryview, known: bytes) -> bytes:
    try:
        return aead.decrypt(_nonce(number), sealed, known)
    except (InvalidTag, ValueError):
        raise UnsealFailed(
            "The index object was changed after it was sealed.",
            hint="It can be made again from the journal: remove it.",
        ) from None


@dataclass(frozen=True)
class _Opener:
    aead: AESGCM
    identity: Identity
    fixed: bytes


class OpenIndex:
    """An index object whose summary is known. For several threads."""

    def __init__(self, head: IndexHead, summary: Summary, opener: _Opener, first: int) -> None:
        self.head = head
        self.summary = summary
        self._opener = opener
        self._starts = [first]
        for section in summary.sections:
            self._starts.append(self._starts[-1] + section.sealed)

    def span(self, numbers: Iterable[int]) -> tuple[int, int]:
        """The bytes of the object from the first to the last of these sections: start, end."""
        chosen = list(numbers)
        return self._starts[min(chosen)], self._starts[max(chosen) + 1]

    def open(self, number: int, read: Callable[[int, int], bytes | memoryview]) -> bytes:
        """A section's plain bytes; `read(start, length)` gives bytes of the object. UnsealFailed,
        WireError."""
        section, opener = self.summary.sections[number], self._opener
        if section.plain > PLAIN_BYTES_MAX:
            raise WireError("A section of an index object is longer than any.")
        sealed = read(self._starts[number], section.sealed)
        known = _authenticated(number + 1, opener.identity, opener.fixed)
        packed = _unseal(opener.aead, number + 1, sealed, known)
        return decompress(packed, section.plain)


def parse_index(data: bytes) -> SealedIndex:
    """Check a whole object's hash and read its clear part; WireError, ChecksumMismatch, no key
    needed."""
    sealed = parse_front(data)
    if sealed is None or sealed.length != len(data):
        raise WireError("The index object is cut off.")
    if blake3(data[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
        raise ChecksumMismatch("The index object does not match its hash.")
    return sealed


def front_length(data: bytes) -> int:
    """Bytes of head, clear part and summary, by the head in `data`; WireError."""
    if len(data) < HEAD_BYTES + _HASH_BYTES:
        raise WireError("The index object is cut off.")
    fields = _HEAD.unpack_from(data)
    if fields[0] != _MAGIC or fields[1] != 1:
        raise WireError(
            "The object is no index object of a version that this software reads.",
            hint="Update this software, or remove the object: it can be made again.",
        )
    clear, summary = fields[10:12]
    if max(clear, summary) > _CLEAR_BYTES_MAX:
        raise WireError("The parts of the index object are longer than any.")
    return int(HEAD_BYTES + clear + summary)


def parse_front(data: bytes) -> SealedIndex | None:
    """What lies before the sections, from the object's first bytes; None if these are too few."""
    end = front_length(data)
    if len(data) < end:
        return None
    fixed = data[:HEAD_BYTES]
    fields = _HEAD.unpack(fixed)
    level, number, first, last = fields[2:6]
    if not 1 <= level <= 7 or not 1 <= number < 1 << 40:
        raise WireError("The index object has a number that none has.")
    clear = data[HEAD_BYTES : HEAD_BYTES + fields[10]]
    try:
        keys = msgspec.json.decode(clear, type=_Clear)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"An index object's clear part is malformed: {error}.") from None
    newest = parse_trailer(fields[13])
    head = IndexHead(level, number, fields[6], fields[7], newest, keys.keys, keys.hashes)
    if (first, last, newest.place) != (head.first_place, head.last_place, head.last_place):
        raise WireError("The index object stands for other places than its name says.")
    summary = data[HEAD_BYTES + fields[10] : end]
    return SealedIndex(head, fields[12], fields[8], fields[9], fixed, clear, summary)
