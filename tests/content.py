"""Contents of disks beside each other, told in a few words.

pytest would show two unequal disks byte by byte, for minutes.
"""

from __future__ import annotations


def difference(one: bytes | bytearray, other: bytes | bytearray) -> str:
    """Where two disks differ, in a few words; empty if they are equal."""
    if one == other:
        return ""
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} bytes"
    blocks = [n for n in range(0, len(one), 4096) if one[n : n + 4096] != other[n : n + 4096]]
    return f"{len(blocks)} blocks of 4 KiB differ, the first at {blocks[0]}, the last {blocks[-1]}"
