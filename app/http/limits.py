"""What is refused before anything is read: bodies too large, too deep, or of another kind."""

from __future__ import annotations

import asyncio
import re
from itertools import accumulate

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit.problems import Problem

BODY_BYTES_MAX = 1024 * 1024
#: Nothing of ours is as deep; a parser of ours must not be either.
DEPTH_MAX = 20
#: A body that is within its limit comes in a second over any line.
BODY_SECONDS_MAX = 20.0
_JSON = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check_depth(body: bytes) -> None:
    """Problem `body_too_deep` for JSON in which more than so many values lie in each other."""
    if body.count(b"[") + body.count(b"{") <= DEPTH_MAX:
        return
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    steps = (1 if bracket in b"[{" else -1 for bracket in brackets)
    if max(accumulate(steps), default=0) > DEPTH_MAX:
        raise Problem("body_too_deep", f"At most {DEPTH_MAX} values may lie in each other.")


class BodyLimit:
    """Counts a request's body while it comes, whatever its Content-Length says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_BYTES_MAX:
                raise Problem(
                    "body_too_large",
                    f"A request's body has at most {BODY_BYTES_MAX // 1024} KiB.",
                )
            return message

        await self._app(scope, counted, send)


async def check_body(request: Request) -> None:
    """Receive the body; Problem `request_timeout`, `unsupported_media_type`, `body_too_deep`."""
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            body = await request.body()
    except TimeoutError:
        raise Problem("request_timeout", hint="Send the whole body at once.") from None
    if not body:
        return
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if not _JSON.fullmatch(kind):
        raise Problem("unsupported_media_type", hint="Send JSON as `application/json`.")
    check_depth(body)
