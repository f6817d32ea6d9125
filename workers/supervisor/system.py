"""What the kernel does for a process, where Python has no call for it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36


def set_name(name: str) -> None:
    """What lists of processes show."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def check_single_threaded() -> None:
    """RuntimeError if there is a thread: a fork would copy its locks and not the thread."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"The parent of all children has {threads} threads.")


def become_subreaper() -> None:
    """Orphans below us are ours to reap, whoever forked them; OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
