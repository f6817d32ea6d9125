"""A tiny S3 service that misbehaves as it is told: what a real one does too rarely for a test.

It keeps objects in memory, knows path-style PUT, GET, HEAD, DELETE and ListObjectsV2, checks no
signatures, and may ignore `If-None-Match`, which is how a store looks that must be refused.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Fault(Enum):
    """What to do with a request instead of answering it."""

    LOST_REQUEST = "end the connection, nothing done"
    LOST_ANSWER = "do it, then end the connection"
    ERROR_500 = "do it, then answer 500"
    BUSY_503 = "answer 503, nothing done"
    CONFLICT_409 = "answer 409, nothing done"
    FULL_507 = "answer 507, nothing done"
    DENIED_403 = "answer 403, nothing done"
    CUT_ANSWER = "do it, send half of the answer's body"


@dataclass
class FaultyS3:
    """The service's state; tests reach into it."""

    ignores_condition: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: deque[tuple[str, Fault]] = field(default_factory=deque)
    always: Fault | None = None
    put_seconds: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, bucket: str = "bucket") -> str:
        """A store's URL for this service."""
        return f"s3://{bucket}?endpoint={self.endpoint}&region=us-east-1&path_style=true"

    def take_fault(self, method: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self.lock:
            if self.faults and self.faults[0][0] == method:
                return self.faults.popleft()[1]
            return self.always if method == "PUT" else None

    def put(self, key: str, data: bytes, conditional: bool) -> bool:
        """Whether the object was written."""
        with self.lock:
            if conditional and not self.ignores_condition and key in self.objects:
                return False
            self.objects[key] = data
            return True


@contextlib.contextmanager
def running_faulty_s3(*, ignores_condition: bool = False) -> Iterator[FaultyS3]:
    """Serve on a free port of this machine."""
    state = FaultyS3(ignores_condition=ignores_condition)

    class Handler(_Handler):
        service = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    service: FaultyS3
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base names it
        """Say nothing."""

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.service.put_seconds)
        if self._stopped_before():
            return
        written = self.service.put(self._key(), data, "If-None-Match" in self.headers)
        self._answer(200, b"") if written else self._fail(412, "PreconditionFailed")

    def do_GET(self) -> None:
        if self._stopped_before():
            return
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._list(query)
            return
        data = self.service.objects.get(self._key())
        if data is None:
            self._fail(404, "NoSuchKey")
            return
        span = self.headers.get("Range")
        self._answer(206 if span else 200, _cut(data, span))

    def do_HEAD(self) -> None:
        if self._stopped_before():
            return
        data = self.service.objects.get(self._key())
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_DELETE(self) -> None:
        if self._stopped_before():
            return
        self.service.objects.pop(self._key(), None)
        self._answer(204, b"")

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).partition("/")[2].partition("/")[2]

    def _stopped_before(self) -> bool:
        self.service.requests.append((self.command, self.path))
        self.fault = self.service.take_fault(self.command)
        statuses = {
            Fault.BUSY_503: 503,
            Fault.CONFLICT_409: 409,
            Fault.FULL_507: 507,
            Fault.DENIED_403: 403,
        }
        if self.fault is Fault.LOST_REQUEST:
            self.close_connection = True
            return True
        if self.fault in statuses:
            self._fail(statuses[self.fault], self.fault.name)
            return True
        return False

    def _answer(self, status: int, body: bytes) -> None:
        if self.fault is Fault.LOST_ANSWER:
            self.close_connection = True
            return
        if self.fault is Fault.ERROR_500:
            self._fail(500, "InternalError")
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.fault is Fault.CUT_ANSWER:
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>told to</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "start-after"))
        after = query.get("continuation-token", [after])[0]
        limit = int(query.get("max-keys", ["1000"])[0])
        found = sorted(
            key
            for key in list(self.service.objects)
            if key.startswith(prefix) and key > after and "/" not in key[len(prefix) :]
        )
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.service.objects[key])}</Size>"
            "</Contents>"
            for key in found[:limit]
        )
        more = len(found) > limit
        token = found[limit - 1] if more else ""
        body = (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<NextContinuationToken>{escape(token)}</NextContinuationToken>"
            f"{entries}</ListBucketResult>"
        )
        self._answer(200, body.encode())


def _cut(data: bytes, span: str | None) -> bytes:
    if span is None:
        return data
    first, _, last = span.removeprefix("bytes=").partition("-")
    if not first:
        return data[max(0, len(data) - int(last)) :]
    return data[int(first) : int(last) + 1]
