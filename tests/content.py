"""Contents of disks beside each other, told by where they part.

A test runner that shows how two disks differ byte by byte takes minutes to say so.
"""

from __future__ import annotations


def difference(found: bytes | bytearray, expected: bytes | bytearray) -> str:
    """Where `found` first is not `expected`; empty if they are equal."""
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"{len(found)} bytes, not {len(expected)}"
    low, high = 0, len(found)  # the first difference is in between
    while high - low > 1:
        middle = (low + high) // 2
        if found[low:middle] == expected[low:middle]:
            low = middle
        else:
            high = middle
    return f"byte {low} is {found[low]:#04x}, not {expected[low]:#04x}"
