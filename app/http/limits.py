"""What is refused before anything is read: bodies that are too large."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit.problems import Problem

BODY_BYTES_MAX = 1024 * 1024


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
