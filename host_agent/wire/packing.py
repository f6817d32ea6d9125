"""How a part is packed before it is sealed: one zstd frame with its content size. FORMAT.md 4."""

from __future__ import annotations

import struct

import zstandard

_LEVEL = 1
#: Three to five times as fast. It finds repeats, and leaves what does not repeat uncoded: as good
#: for zeroes and for whole blocks that come again.
_FAST_LEVEL = -5
#: A sample of so many pieces of so many bytes tells how a payload is packed.
_SAMPLE_PIECES, _SAMPLE_BYTES = 32, 2048
#: The fractions of its multiples spread evenly, so that what repeats in a payload hides nowhere.
_GOLDEN = 0.618034
#: By so much more than at level 1, as a share, a sample may come out to get the fast one.
_FAST_LOSS = 0.01

#: RFC 8878: magic number, a descriptor that says "one segment, its size in four bytes", the size.
_FRAME = struct.Struct("<IBI")
_MAGIC, _ONE_SEGMENT = 0xFD2FB528, 0xA0
#: The most that a block holds.
_BLOCK_BYTES = 128 * 1024


Packed = list[bytes | memoryview]
"""A frame of zstd, in pieces that follow one another."""


class Packer:
    """Packs parts; payloads each as well as a sample of it says is worth the time."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)
        self._fast = zstandard.ZstdCompressor(level=_FAST_LEVEL)

    def pack(self, data: bytes) -> Packed:
        """At level 1."""
        return [self._zstd.compress(data)]

    def pack_payload(self, data: bytes) -> Packed:
        """At level 1, faster, or as it is."""
        sample = _sample(data)
        if not sample:
            return self.pack(data)
        small = len(self._zstd.compress(sample))
        if small >= len(sample):
            return as_it_is(data)
        is_fast = len(self._fast.compress(sample)) <= (1 + _FAST_LOSS) * small
        return [self._fast.compress(data)] if is_fast else self.pack(data)


def _sample(data: bytes) -> bytes:
    """Pieces from all over the data, at changing places of its stretches; empty if it is short."""
    step = len(data) // _SAMPLE_PIECES
    if step < 2 * _SAMPLE_BYTES:
        return b""
    room = step - _SAMPLE_BYTES
    starts = (i * step + int(i * _GOLDEN % 1.0 * room) for i in range(_SAMPLE_PIECES))
    return b"".join(data[at : at + _SAMPLE_BYTES] for at in starts)


def as_it_is(data: bytes) -> Packed:
    """A zstd frame of blocks that are not compressed, with the data where it is."""
    view, length = memoryview(data), len(data)
    pieces: Packed = [_FRAME.pack(_MAGIC, _ONE_SEGMENT, length)]
    for at in range(0, length, _BLOCK_BYTES):
        block = view[at : at + _BLOCK_BYTES]
        is_last = at + _BLOCK_BYTES >= length
        pieces += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return pieces
