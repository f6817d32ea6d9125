"""What glibc does with memory that frames leave behind.

By default each frame's and segment's buffer is mapped and unmapped again, and the kernel clears
every page of it anew: that was two fifths of ingest's processor time. Kept in the heap, the same
pages serve the next frame; what stays unused goes back when the process has been quiet.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: The most that glibc allows; a segment's buffer is smaller.
_MMAP_BYTES = 32 * 1024 * 1024
_TRIM_BYTES = 256 * 1024 * 1024


def _library() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def reuse_memory() -> bool:
    """Have freed buffers used again; False where the C library is another. Before any thread."""
    library = _library()
    if library is None:
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_THRESHOLD, _MMAP_BYTES),
        (_M_TRIM_THRESHOLD, _TRIM_BYTES),
    )
    return all(library.mallopt(name, value) == 1 for name, value in settings)


def return_memory() -> None:
    """Give unused memory back to the system."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)
