"""How a part is packed before it is sealed: one zstd frame with its content size. FORMAT.md 4."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

_LEVEL = 1
#: Three to five times as fast. It finds repeats, and leaves what does not repeat uncoded: as good
#: for zeroes and for whole blocks that come again.
_FAST_LEVEL = -5
#: By so much more than at level 1, as a share, a sample may come out to get the fast one.
_FAST_LOSS = 0.01
#: A sample of so many places tells how a payload is packed. Shorter ones are packed at level 1.
_PLACES, _SAMPLED_BYTES_MIN = 32, 128 * 1024
#: The fractions of its multiples spread evenly, so that what repeats in a payload hides nowhere.
_GOLDEN = 0.618034
#: What is compressed at each place to choose a level, and whose bytes are counted to find noise.
_COMPRESSED_BYTES, _COUNTED_BYTES = 2048, 1024
#: Chi-square of a place's 256 counts against even ones: noise has 255 +- 23, base64 3,000.
_NOISE_CHI_SQUARE = 2000.0
#: The same as the mean of all places: an entropy coder would win three percent at most.
_NOISE_CHI_SQUARE_MEAN = 600.0
_PLACE_ROWS = (np.arange(_PLACES) * 256)[:, None]

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

    def pack_payload(self, data: bytes, *, repeats: bool = False) -> Packed:
        """At level 1, faster, or as it is: noise, unless `repeats` says that some comes again."""
        if len(data) < _SAMPLED_BYTES_MIN:
            return self.pack(data)
        if not repeats and is_noise(data):
            return as_it_is(data)
        sample = _sample(data, _COMPRESSED_BYTES)
        small, fast = len(self._zstd.compress(sample)), len(self._fast.compress(sample))
        return [self._fast.compress(data)] if fast <= (1 + _FAST_LOSS) * small else self.pack(data)


def is_noise(data: bytes) -> bool:
    """Whether the bytes of each place of a sample are as evenly spread as noise.

    Each place for itself: together, much noise would hide a little that can be compressed.
    """
    places = np.frombuffer(_sample(data, _COUNTED_BYTES), np.uint8).reshape(_PLACES, -1)
    counts = np.bincount((places + _PLACE_ROWS).ravel(), minlength=_PLACES * 256)
    expected = _COUNTED_BYTES / 256
    squares = ((counts.reshape(_PLACES, 256) - expected) ** 2).sum(axis=1)
    is_even = squares.max() <= _NOISE_CHI_SQUARE * expected
    return bool(is_even and squares.mean() <= _NOISE_CHI_SQUARE_MEAN * expected)


def _sample(data: bytes, count: int) -> bytes:
    """`count` bytes of each place; the places lie all over the data, not all at equal distances."""
    step = len(data) // _PLACES
    room = step - count
    starts = (i * step + int(i * _GOLDEN % 1.0 * room) for i in range(_PLACES))
    return b"".join(data[at : at + count] for at in starts)


def as_it_is(data: bytes) -> Packed:
    """A zstd frame of blocks that are not compressed, with the data where it is."""
    view, length = memoryview(data), len(data)
    pieces: Packed = [_FRAME.pack(_MAGIC, _ONE_SEGMENT, length)]
    for at in range(0, length, _BLOCK_BYTES):
        block = view[at : at + _BLOCK_BYTES]
        is_last = at + _BLOCK_BYTES >= length
        pieces += [(len(block) << 3 | is_last).to_bytes(3, "little"), block]
    return pieces
