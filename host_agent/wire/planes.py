"""Columns of numbers as byte planes: all first bytes, then all second ones, which compress well."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Up to so many used planes are put together one by one: turning bytes round costs more.
_SHIFTED_MAX = 3


def to_planes(column: NDArray[Any]) -> bytes:
    """The planes of a contiguous column."""
    return column.view(np.uint8).reshape(len(column), column.itemsize).T.tobytes()


def from_planes(planes: NDArray[np.uint8], kind: np.dtype[Any]) -> NDArray[Any]:
    """The column whose byte p of all rows is `planes[p]`. Most planes of most columns are empty."""
    if not planes.size:
        return np.empty(0, kind)
    used = np.flatnonzero(planes.max(axis=1)).tolist()
    if len(used) > min(_SHIFTED_MAX, kind.itemsize - 1):
        turned: NDArray[Any] = np.ascontiguousarray(planes.T).view(kind)[:, 0]
        return turned
    column = np.zeros(planes.shape[1], kind)
    for plane in used:
        column |= planes[plane].astype(kind) << kind.type(8 * plane)
    return column
