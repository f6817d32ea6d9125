"""Dependencies that are worked out on the event loop.

FastAPI sends each one that is no coroutine to a thread: a tenth of a millisecond and more, several
times a request, for what takes a microsecond. A test holds that no route has one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def on_loop(make: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same as a coroutine, for a class or a function that never waits."""

    @wraps(make)
    async def made(*args: P.args, **kwargs: P.kwargs) -> T:
        return make(*args, **kwargs)

    return made
