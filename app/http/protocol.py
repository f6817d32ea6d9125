"""HTTP/1.1 as the API speaks it: nothing that two readers of the same bytes could take differently.

A proxy in front that sees one request where we see two would pass a stranger's request as its own.
So what is ambiguous is refused, nothing is read behind a request before its answer, and whoever is
slow to say what it wants is let go.
"""

from __future__ import annotations

import asyncio
import json
import re

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.kit.problems import MEDIA_TYPE, Problem

HEAD_SECONDS_MAX = 10.0
_END = b"\r\n\r\n"
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)(?=[\s\S])")
_FIRST = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.[01]")
_FOLDED = re.compile(rb"\r\n[ \t]")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
#: More than one of these says two things.
_ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization")


def flaw_of(head: bytes) -> str | None:
    """What is wrong with a request's head, as far as it has come; None if nothing is yet."""
    if _BARE.search(head):
        return "its lines do not end with CR LF"
    if _FOLDED.search(head):
        return "a header goes on over a line's end"
    if not head.endswith(_END):
        return None
    first, *lines = head.removesuffix(_END).split(b"\r\n")
    if not _FIRST.fullmatch(first):
        return "its first line is not METHOD TARGET HTTP/1.1"
    fields = [line.partition(b":")[::2] for line in lines]
    names = [name.lower() for name, _ in fields]
    if not all(_NAME.fullmatch(name) for name in names):
        return "a header's name is none"
    doubled = next((name.decode() for name in _ONCE if names.count(name) > 1), None)
    if doubled is not None:
        return f"it has {doubled} twice"
    lengths = [value.strip() for name, value in fields if name.lower() == b"content-length"]
    if not all(length.isdigit() for length in lengths):
        return "its content-length is no number"
    if b"transfer-encoding" in names and lengths:
        return "it says its body's length in two ways"
    if b"transfer-encoding" in names and not first.endswith(b"HTTP/1.1"):
        return "its version knows no transfer-encoding"
    return None


class StrictProtocol(H11Protocol):
    """A connection of the API."""

    def connection_made(  # type: ignore[override]  # as the class above has it
        self, transport: asyncio.Transport
    ) -> None:
        self._head = bytearray()
        self._slow: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE:
            if not self._takes_head(data):
                return
        elif self.conn.their_state is h11.DONE:
            self._end_after_answer()
            return
        super().data_received(data)
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self._end_after_answer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._await_head()  # what is left of a body that was refused comes soon or not at all

    def _takes_head(self, data: bytes) -> bool:
        """Whether what has come so far may be read on."""
        self._await_head()
        head, end, _ = (bytes(self._head) + data).partition(_END)
        flaw = flaw_of(head + end)
        if flaw is not None:
            self._refuse(flaw)
            return False
        if end:
            self._heard_head()
        else:
            self._head += data
        return True

    def _await_head(self) -> None:
        if self._slow is None:
            self._slow = self.loop.call_later(HEAD_SECONDS_MAX, self._let_go)

    def _heard_head(self) -> None:
        self._head.clear()
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _let_go(self) -> None:
        self._unset_keepalive_if_required()
        self.transport.abort()

    def _refuse(self, flaw: str) -> None:
        self._heard_head()
        self._unset_keepalive_if_required()
        self.send_400_response(f"The request is refused: {flaw}.")

    def _end_after_answer(self) -> None:
        """Nobody asks again before the answer; what comes here is not read as a request."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """As a problem document, and the end of the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        problem = Problem("bad_request", msg, hint="Send HTTP/1.1 as RFC 9112 has it.")
        body = json.dumps(problem.body("")).encode()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            sent = self.conn.send(event)
            if sent:
                self.transport.write(sent)
        self.transport.close()
