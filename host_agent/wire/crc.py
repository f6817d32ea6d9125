"""CRC-32C of whole batches: one pass over the bytes, and the records' own checksums combined.

A CRC is linear over GF(2): appending n bytes multiplies it by x^(8n) modulo the polynomial. So the
CRC of a concatenation is the exclusive or of each piece's CRC shifted by what follows it (the
method of zlib's crc32_combine). Shifts by powers of two use byte-wise tables for all pieces.
"""

from __future__ import annotations

from functools import cache, lru_cache

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_POLY = 0x82F63B78
_TOP = 1 << 31


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC-32C of a contiguous buffer."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else bytes(data)))


def crc32c_extend(crc: int, data: bytes) -> int:
    """CRC-32C of what `crc` covers, followed by `data`."""
    return int(google_crc32c.extend(crc, data))


def _multiply(a: int, b: int) -> int:
    """Product of two reflected polynomials modulo the CRC's."""
    product = 0
    bit = _TOP
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ (_POLY if b & 1 else 0)
        bit >>= 1
    return product


@cache
def _shift_table(power: int) -> NDArray[np.uint32]:
    """Tables (4, 256) that shift a CRC by 2**power bytes."""
    factor = _byte_factor(power)
    table = np.zeros((4, 256), np.uint32)
    for byte in range(4):
        for bit in range(8):
            value = _multiply(1 << (8 * byte + bit), factor)
            table[byte, 1 << bit] = value
        for entry in range(1, 256):
            low = entry & -entry
            table[byte, entry] = table[byte, low] ^ table[byte, entry ^ low]
    return table


@cache
def _byte_factor(power: int) -> int:
    """x^(8 * 2**power) modulo the polynomial, reflected."""
    if power == 0:
        return _TOP >> 8
    half = _byte_factor(power - 1)
    return _multiply(half, half)


def shift(crcs: NDArray[np.uint32], lengths: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Each CRC as it is after `lengths` zero-CRC bytes more (the combination's shift)."""
    result = crcs.astype(np.uint32, copy=True)
    if not len(result):
        return result
    for power in range(int(lengths.max()).bit_length()):
        rows = np.flatnonzero((lengths >> np.uint64(power)) & np.uint64(1))
        if len(rows):
            result[rows] = _shift_by_power(result[rows], power)
    return result


def _shift_by_power(value: NDArray[np.uint32], power: int) -> NDArray[np.uint32]:
    table = _shift_table(power)
    shifted: NDArray[np.uint32] = (
        table[0][value & 0xFF]
        ^ table[1][(value >> 8) & 0xFF]
        ^ table[2][(value >> 16) & 0xFF]
        ^ table[3][value >> 24]
    )
    return shifted


def span_crc(crcs: NDArray[np.uint32], lengths: NDArray[np.uint32]) -> int:
    """CRC-32C of the concatenation of pieces, from the pieces' own CRCs and lengths in bytes."""
    if not len(crcs):
        return 0
    if (lengths == lengths[0]).all():
        return _even_span_crc(crcs, int(lengths[0]))
    ends = np.cumsum(lengths, dtype=np.uint64)
    return int(np.bitwise_xor.reduce(shift(crcs, ends[-1] - ends)))


def _even_span_crc(crcs: NDArray[np.uint32], length: int) -> int:
    """The same for pieces of one length: groups of neighbours are joined until one is left."""
    while len(crcs) > 1:
        if missing := -len(crcs) % _GROUP:
            # A CRC of zero stays zero however it is shifted: in front it adds nothing.
            crcs = np.concatenate([np.zeros(missing, np.uint32), crcs])
        in_bytes = np.ascontiguousarray(crcs, "<u4").view(np.uint8).reshape(-1, 4 * _GROUP)
        crcs = np.bitwise_xor.reduce(_group_table(length)[in_bytes + _GROUP_ROWS], axis=1)
        length *= _GROUP
    return int(crcs[0])


#: Pieces joined at once: each doubling spares a round and takes twice the memory.
_GROUP = 32
#: Where each byte of a group's CRCs has its 256 entries in the group's table.
_GROUP_ROWS = np.arange(4 * _GROUP) * 256


@lru_cache(maxsize=16)
def _group_table(length: int) -> NDArray[np.uint32]:
    """What each byte of the CRCs of a group's pieces, of `length` bytes each, adds to its CRC."""
    table = np.empty((_GROUP, 4 * 256), np.uint32)
    each = np.full(4 * 256, length, np.uint64)
    values = np.arange(256, dtype=np.uint32)
    table[-1] = np.concatenate([values << np.uint32(8 * byte) for byte in range(4)])
    for place in range(_GROUP - 2, -1, -1):
        table[place] = shift(table[place + 1], each)
    return table.ravel()


def repeated_crc(crc: int, length: int, count: int) -> int:
    """CRC-32C of `count` pieces of `length` bytes that all have the CRC `crc`."""
    whole, piece, factor = 0, crc, _multiply_power(length)
    while count:
        if count & 1:
            whole = _multiply(whole, factor) ^ piece
        piece = _multiply(piece, factor) ^ piece
        factor = _multiply(factor, factor)
        count >>= 1
    return whole


def _multiply_power(length: int) -> int:
    """x^(8 * length) modulo the polynomial, reflected."""
    factor = _TOP
    for power in range(length.bit_length()):
        if length >> power & 1:
            factor = _multiply(factor, _byte_factor(power))
    return factor


def first_bad(
    span: bytes | memoryview, crcs: NDArray[np.uint32], lengths: NDArray[np.uint32]
) -> int | None:
    """Which piece does not match its CRC; None if all do. Slow: it names the culprit afterwards."""
    position = 0
    for row, (crc, length) in enumerate(zip(crcs.tolist(), lengths.tolist(), strict=True)):
        if crc32c(span[position : position + length]) != crc:
            return row
        position += length
    return None
