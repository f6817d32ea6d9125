"""Whose a server's certificate is, and what is said of what TLS cannot use."""

from __future__ import annotations

import datetime as dt
import os
from contextlib import suppress

import pytest
import trustme
from OpenSSL import SSL

from host_agent.wire.tls import (
    Connection,
    ServerCheck,
    Unusable,
    believe,
    is_end,
    reason_of,
    show,
)

OURS, THEIRS = trustme.CA(), trustme.CA()
_LONG_AGO = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)


def _server(leaf: trustme.LeafCert) -> Connection:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
    show(context, chain, leaf.private_key_pem.bytes())
    connection = Connection(context, None)
    connection.set_accept_state()
    return connection


def _client(check: ServerCheck) -> SSL.Connection:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    believe(context, OURS.cert_pem.bytes())
    context.set_verify(SSL.VERIFY_PEER, check)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    return connection


def _shake(client: SSL.Connection, server: SSL.Connection) -> None:
    """A handshake through memory; SSL.Error of the client."""
    for _ in range(4):
        for one, other in ((client, server), (server, client)):
            with suppress(SSL.WantReadError):
                one.do_handshake()
            with suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(1 << 20))


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("ingest.example", "ingest.example"),
        ("Ingest.Example", "ingest.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_the_named_server_is_believed(wanted: str, shown: str) -> None:
    check = ServerCheck(wanted)
    _shake(_client(check), _server(OURS.issue_cert(shown)))
    assert check.is_passed
    assert not check.refused


@pytest.mark.parametrize(
    ("wanted", "leaf", "why"),
    [
        ("ingest", lambda: OURS.issue_cert("elsewhere"), "it is not of ingest"),
        ("a.example", lambda: OURS.issue_cert("*.example"), "it is not of a.example"),
        ("127.0.0.1", lambda: OURS.issue_cert("127.0.0.2"), "it is not of 127.0.0.1"),
        ("127.0.0.1", lambda: OURS.issue_cert("localhost"), "it is not of 127.0.0.1"),
        ("ingest", lambda: OURS.issue_cert(common_name="ingest"), "it is not of ingest"),
        ("ingest", lambda: THEIRS.issue_cert("ingest"), "its authority is not the one"),
        ("ingest", lambda: OURS.issue_cert("ingest", not_after=_LONG_AGO), "it has expired"),
    ],
)
def test_any_other_is_refused_with_the_reason(wanted: str, leaf: object, why: str) -> None:
    assert callable(leaf)
    check = ServerCheck(wanted)
    with pytest.raises(SSL.Error):
        _shake(_client(check), _server(leaf()))
    assert why in check.refused
    assert not check.is_passed


def test_what_tls_cannot_use_is_said() -> None:
    leaf, other = OURS.issue_cert("one"), OURS.issue_cert("two")
    chain, key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    for certificate, private in (
        (b"", key),
        (chain, b""),
        (b"no certificate", key),
        (chain, b"no key"),
        (chain, other.private_key_pem.bytes()),
    ):
        with pytest.raises(Unusable) as caught:
            show(context, certificate, private)
        assert str(caught.value)
    with pytest.raises(Unusable):
        believe(context, b"")


def test_errors_have_words() -> None:
    assert reason_of(SSL.SysCallError(104, "ECONNRESET")) == "connection reset by peer"
    assert reason_of(SSL.SysCallError(-1, "Unexpected EOF")) == "the connection ended"
    assert reason_of(SSL.Error([("SSL routines", "", "TLSV1 alert")])) == "tlsv1 alert"
    assert reason_of(TimeoutError()) == "timeouterror"
    assert is_end(SSL.ZeroReturnError())
    assert is_end(SSL.SysCallError(-1, "Unexpected EOF"))
    assert not is_end(SSL.SysCallError(104, "ECONNRESET"))
    assert not is_end(OSError(5, "x"))


def _connected() -> tuple[SSL.Connection, Connection]:
    client, server = _client(ServerCheck("ingest")), _server(OURS.issue_cert("ingest"))
    _shake(client, server)
    return client, server


def _pass_on(client: SSL.Connection, server: SSL.Connection) -> None:
    server.bio_write(client.bio_read(1 << 20))


def test_memory_is_filled_with_what_many_records_hold() -> None:
    client, server = _connected()
    sent = os.urandom(100_000)
    client.sendall(sent)
    _pass_on(client, server)
    first, rest = bytearray(30_000), bytearray(100_000)
    assert server.fill(memoryview(first)) == (30_000, None)
    count, why = server.fill(memoryview(rest))
    assert isinstance(why, SSL.WantReadError)
    assert bytes(first + rest[:count]) == sent
    assert not any(rest[count:])


def test_what_came_before_the_end_is_told_with_it() -> None:
    client, server = _connected()
    client.sendall(b"the last words")
    client.shutdown()
    _pass_on(client, server)
    into = bytearray(100)
    count, why = server.fill(memoryview(into))
    assert into[:count] == b"the last words"
    assert isinstance(why, SSL.ZeroReturnError)
    assert is_end(why)


def test_a_changed_record_is_not_filled_in() -> None:
    client, server = _connected()
    client.sendall(os.urandom(20_000))
    records = bytearray(client.bio_read(1 << 20))
    records[-100] ^= 1
    server.bio_write(bytes(records))
    into = bytearray(20_000)
    count, why = server.fill(memoryview(into))
    assert count == 16_384
    assert isinstance(why, SSL.Error)
    assert not isinstance(why, SSL.WantReadError)
    assert not any(into[count:])
