"""What the kernel does for a process, where Python has no call for it."""

from __future__ import annotations

import ctypes

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def set_name(name: str) -> None:
    """What lists of processes show."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def become_subreaper() -> None:
    """Orphans below us are ours to reap, whoever forked them; OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
