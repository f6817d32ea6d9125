"""When Python looks through its memory for what only refers to itself: a little, and often.

By itself it does so whenever its objects have become so many more. With a thousand connections the
young ones are ten thousand by then and all of them some hundred thousand: 10 ms, and 100, in which
nothing else runs. Here the youngest are looked through ten times a second, and all once an hour or
when many connections were closed: theirs is nearly all that grows old and is found.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

_LOOK_SECONDS = 0.1
#: Each so manieth look is at those that outlived one, too.
_OLDER_EACH = 4
_ALL_SECONDS = 3_600.0
_CLOSED_MAX = 1_000


async def collect_often(closed: Callable[[], int]) -> None:
    """Until cancelled, in place of Python's own times. `closed`: connections so far that ended."""
    loop = asyncio.get_running_loop()
    last, closed_then, looks = loop.time(), closed(), 0
    gc.disable()
    try:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            looks += 1
            if loop.time() - last >= _ALL_SECONDS or closed() - closed_then >= _CLOSED_MAX:
                gc.collect()
                last, closed_then = loop.time(), closed()
            else:
                gc.collect(1 if looks % _OLDER_EACH == 0 else 0)
    finally:
        gc.enable()
