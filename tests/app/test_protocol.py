"""HTTP at the API's own port: ambiguous requests, slow ones, and who is believed to call.

A request that two readers could cut differently must never be answered as two. Each of the corpus
holds a second request in what somebody else might take for the first one's body.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import make_url
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

import app.http.limits
import app.http.protocol
from app.api import make_app
from app.certificates.authority import make_root, sign_server
from app.database.sessions import Database
from app.http.process import ApiSettings, server_config
from app.http.protocol import flaw_of
from app.http.unit import Tools
from app.kit.clock import SystemClock
from app.kit.sealing import Sealer
from tests.app.service import SECRET

_POST = b"POST /v1/sites HTTP/1.1\r\nHost: x\r\n"
_GET = b"GET /v1/problems HTTP/1.1\r\nHost: x\r\n"
_SECOND = b"GET /v1/enums HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_LENGTH = b"Content-Length: 5\r\n"


def _lengths(*texts: bytes) -> Iterator[bytes]:
    for text in texts:
        yield _POST + b"Content-Length: " + text + b"\r\n\r\n" + _SECOND


def _codings(*lines: bytes) -> Iterator[bytes]:
    for line in lines:
        yield _POST + _LENGTH + line + b"\r\n\r\n0\r\n\r\n" + _SECOND
        yield _POST + line + b"\r\n" + _LENGTH + b"\r\n0\r\n\r\n" + _SECOND


def _chunks(*bodies: bytes) -> Iterator[bytes]:
    for body in bodies:
        yield _POST + _CHUNKED + b"\r\n" + body + _SECOND


CORPUS = [
    *_codings(
        b"Transfer-Encoding: chunked",
        b"transfer-encoding:chunked",
        b"Transfer-Encoding:\tchunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: chunked\x00",
        b"Transfer-Encoding\x00: chunked",
        b"X: y\r\n Transfer-Encoding: chunked",
        b"X: y\n" + b"Transfer-Encoding: chunked",
        b"X: y\r" + b"Transfer-Encoding: chunked",
    ),
    *_lengths(
        *(b"+5", b"-5", b"0x5", b"5 5", b"5, 5", b"5, 6", b"", b"5;", b"1e1", b"5\x00"),
        *(b"\xef\xbc\x95", b"99999999999999999999999", b"5\r\nContent-Length: 6"),
        *(b"5\r\nContent-Length: 5", b"5\r\n\tX: y"),
    ),
    *_chunks(
        *(b"G\r\n", b"-1\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n"),
        *(b"5\r\nhello0\r\n\r\n", b"fffffffffffffffffffff\r\n", b"5;a\n\r\nhello\r\n0\r\n\r\n"),
        *(b" 5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\rX0\r\n\r\n"),
    ),
    _POST + _CHUNKED + _CHUNKED + b"\r\n0\r\n\r\n" + _SECOND,
    _POST.replace(b"1.1", b"1.0") + _CHUNKED + b"\r\n0\r\n\r\n" + _SECOND,
    b"GET /v1/problems HTTP/1.1\nHost: x\n\n" + _SECOND,
    b"\n" + _GET + b"\r\n" + _SECOND,
    b"\r\n" + _GET + b"\r\n" + _SECOND,
    _GET + b"X: a\rb\r\n\r\n" + _SECOND,
    _GET + b"X: a\r\r\n\r\n" + _SECOND,
    _GET + b"Host: y\r\n\r\n" + _SECOND,
    _GET + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n" + _SECOND,
    _GET + b": nothing\r\n\r\n" + _SECOND,
    _GET + b"nothing\r\n\r\n" + _SECOND,
    _GET + b"X y: z\r\n\r\n" + _SECOND,
    _GET + b"X\x00: z\r\n\r\n" + _SECOND,
    b"GET  /v1/problems HTTP/1.1\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET\t/v1/problems\tHTTP/1.1\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/pro blems HTTP/1.1\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems\x00 HTTP/1.1\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems HTTP/0.9\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems HTTP/2.0\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems http/1.1\r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems HTTP/1.1 \r\nHost: x\r\n\r\n" + _SECOND,
    b"GET /v1/problems HTTP/1.1\r\n\r\n" + _SECOND,
]


@contextmanager
def served(config: uvicorn.Config) -> Iterator[int]:
    """A server of this configuration on a loop of its own; its port."""
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)


def tools_without_database() -> Tools:
    nobody = make_url("postgresql+psycopg://127.0.0.1:1/none")
    return Tools(Database(nobody), Sealer(SECRET), SystemClock(), make_root(datetime.now(UTC)))


def settings_in(folder: Path, **told: Any) -> ApiSettings:
    """A real certificate in real files."""
    root = make_root(datetime.now(UTC))
    made = sign_server(root, ["localhost"], datetime.now(UTC))
    (folder / "server.pem").write_bytes(made.certificate_pem.encode() + made.key_pem)
    files: dict[str, Any] = {
        "secret_file": folder / "secret",
        "api_certificate_file": folder / "server.pem",
        "root_certificate_file": folder / "root.crt",
        "root_key_file": folder / "root.key",
    }
    return ApiSettings(
        database_url="postgresql://localhost/none", api_listen="127.0.0.1:0", **files, **told
    )


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("api")
    with served(server_config(settings_in(folder), make_app(tools_without_database()))) as found:
        yield found


@contextmanager
def connected(port: int) -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
        context.wrap_socket(raw) as line,
    ):
        yield line


def answers(line: socket.socket, wait: float = 1.0) -> bytes:
    """All that comes until the end, or until nothing does for a while."""
    found = b""
    line.settimeout(wait)
    with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
        while data := line.recv(65536):
            found += data
    return found


def how_many(found: bytes) -> int:
    """Answers in what came."""
    return len(re.findall(rb"HTTP/1\.1 \d{3} ", found))


def test_there_are_enough_of_them() -> None:
    assert len(set(CORPUS)) >= 70


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_an_ambiguous_request_is_refused_and_nothing_behind_it_is_read(
    port: int, number: int
) -> None:
    with connected(port) as line:
        line.sendall(CORPUS[number])
        found = answers(line)
    assert how_many(found) <= 1, found
    assert found[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 501"), found
    assert b"Lifecycle" not in found, "the second request was answered"
    if found:
        assert b"connection: close" in found.lower()


def test_two_good_requests_are_answered_one_after_the_other(port: int) -> None:
    with connected(port) as line:
        for _ in range(2):
            line.sendall(_GET + b"\r\n")
            assert answers(line).count(b"HTTP/1.1 200") == 1
        for byte in _GET + b"\r\n":  # also in pieces
            line.sendall(bytes([byte]))
        assert answers(line).count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("first", [_GET + b"\r\n", _POST + _LENGTH + b"\r\nhello"])
def test_what_comes_before_the_answer_is_no_request(port: int, first: bytes) -> None:
    with connected(port) as line:
        line.sendall(first + _SECOND)
        found = answers(line)
    assert how_many(found) == 1
    assert b"Lifecycle" not in found


def test_control_a_lenient_server_answers_some_of_them(tmp_path: Path) -> None:
    config = server_config(settings_in(tmp_path), make_app(tools_without_database()))
    config.http_protocol_class = H11Protocol
    lenient = 0
    with served(config) as port:
        for request in CORPUS:
            with connected(port) as line:
                line.sendall(request)
                found = answers(line, 0.3)
            lenient += found[:12] not in (b"", b"HTTP/1.1 400", b"HTTP/1.1 501")
            lenient += b"Lifecycle" in found
    assert lenient >= 5


def test_a_refusal_is_a_problem(port: int) -> None:
    with connected(port) as line:
        line.sendall(CORPUS[0])
        head, _, body = answers(line).partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert (problem["code"], problem["retryable"]) == ("bad_request", False)
    assert "in two ways" in problem["detail"]


def test_slow_heads_are_let_go_and_others_are_served(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.http.protocol, "HEAD_SECONDS_MAX", 1.0)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(port)) for _ in range(200)]
        for number, line in enumerate(slow):
            line.sendall(_GET[: number % len(_GET)])
        with connected(port) as good:
            good.sendall(_GET + b"\r\n")
            assert answers(good).startswith(b"HTTP/1.1 200")
        ends = time.monotonic() + 30
        for line in slow:
            assert answers(line, max(0.1, ends - time.monotonic())) == b""
        assert time.monotonic() < ends


def test_a_body_that_does_not_come_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.http.limits, "BODY_SECONDS_MAX", 0.5)
    with connected(port) as line:
        line.sendall(_POST + b"Content-Length: 100\r\nContent-Type: application/json\r\n\r\n{")
        found = answers(line, 20)
    assert found.startswith(b"HTTP/1.1 408"), found
    assert b"request_timeout" in found


def test_a_body_that_is_too_large_ends_before_it_is_all_there(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.http.protocol, "HEAD_SECONDS_MAX", 1.0)
    with connected(port) as line:
        line.sendall(_POST + b"Content-Length: 1000000000\r\n\r\n" + b"x" * (2 << 20))
        found = answers(line, 20)
    assert found.startswith(b"HTTP/1.1 413"), found


@pytest.mark.parametrize(
    ("proxies", "believed"), [((), False), (("10.0.0.0/8",), False), (("127.0.0.1",), True)]
)
def test_only_a_configured_proxy_says_who_calls(
    tmp_path: Path, proxies: tuple[str, ...], believed: bool
) -> None:
    async def say_who(scope: Any, _receive: Any, send: Any) -> None:
        body = scope["client"][0].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    told: ASGIApp = say_who
    config = server_config(settings_in(tmp_path, api_proxies=proxies), told)
    config.lifespan = "off"
    with served(config) as port, connected(port) as line:
        line.sendall(_GET + b"X-Forwarded-For: 203.0.113.9\r\n\r\n")
        found = answers(line)
    assert found.endswith(b"203.0.113.9" if believed else b"127.0.0.1"), found


def test_a_head_is_judged_as_far_as_it_has_come() -> None:
    head = _GET + b"X: y\r\n\r\n"
    assert all(flaw_of(head[:length]) is None for length in range(len(head) + 1))
