"""Which record wins each byte: a segment tree painted level by level, for all records at once.

The later of two intervals wins where they overlap. Their ends cut the addresses into cells; each
interval is a run of cells, which splits into at most two nodes on each level of a binary tree.
Level by level, all intervals that need a node there put their rank into it (later ranks last, so
they stay), and those that are done drop out. Pushing the greatest rank from each node to its
children leaves the winner in each leaf. Sorting the ends costs most of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Ranks = NDArray[np.int32]


@dataclass(frozen=True)
class Painted:
    """Disjoint pieces in the order of their addresses. `winner` is a row of the input."""

    start: U64
    end: U64
    winner: Ranks


def paint(start: U64, end: U64) -> Painted:
    """The visible pieces of half-open intervals, of which the later ones cover the earlier.

    What no interval covers is in no piece. Adjacent cells of the same winner are one piece.
    """
    count = len(start)
    if not count:
        return Painted(start[:0], end[:0], np.empty(0, np.int32))
    cuts, inverse = np.unique(np.concatenate([start, end]), return_inverse=True)
    leaves = 1 << max(0, int(len(cuts) - 2).bit_length())
    levels = _paint_levels(
        inverse[:count].astype(np.int32), inverse[count:].astype(np.int32), leaves
    )
    winner = _push_down(levels)[: len(cuts) - 1]
    return _merge(cuts, winner)


def _paint_levels(left: Ranks, right: Ranks, leaves: int) -> list[Ranks]:
    """For each level, leaves first, the greatest rank (from 1; 0: none) that was put into each
    node."""
    rank = np.arange(1, len(left) + 1, dtype=np.int32)
    levels = []
    width = leaves
    while width:
        nodes = np.zeros(width, np.int32)
        if len(left):
            odd = np.flatnonzero(left & 1)
            # Of equal indices the last assignment stays, and ranks ascend.
            nodes[left[odd]] = rank[odd]
            odd = np.flatnonzero(right & 1)
            at = right[odd] - 1
            nodes[at] = np.maximum(nodes[at], rank[odd])
            left = (left + 1) >> 1
            right = right >> 1
            keep = np.flatnonzero(left < right)
            if len(keep) < len(left):
                left, right, rank = left[keep], right[keep], rank[keep]
        levels.append(nodes)
        width >>= 1
    return levels


def _push_down(levels: list[Ranks]) -> Ranks:
    """The leaves' winners from the nodes of all levels."""
    above = levels[-1]
    for nodes in reversed(levels[:-1]):
        above = np.maximum(nodes, np.repeat(above, 2))
    return above


def _merge(cuts: U64, winner: Ranks) -> Painted:
    """Pieces from cells: neighbours of one winner joined, uncovered cells left out."""
    change = np.empty(len(winner), bool)
    change[0] = True
    np.not_equal(winner[1:], winner[:-1], out=change[1:])
    first = np.flatnonzero(change)
    last = np.append(first[1:], len(winner))
    kept = np.flatnonzero(winner[first])
    first, last = first[kept], last[kept]
    return Painted(cuts[first], cuts[last], winner[first] - 1)
