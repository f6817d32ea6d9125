"""What a command imports stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Imports that a guest waits for: meanwhile, and in them later, nobody looks for garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
