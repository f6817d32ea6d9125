"""The first bytes of a connection: OpenSSL's own are read, everything else is refused."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire.names import INGEST, server_name
from workers.supervisor.hello import HELLO_BYTES_MAX, NeedsMore, NoHello, server_name_of

NAME = server_name("ten_01hq3v5k8m9n2p4r6s7t8w9x0z", INGEST)


def client_hello(name: str | None = NAME, protocols: tuple[str, ...] = ("holdfast/1",)) -> bytes:
    """What OpenSSL's client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


HELLO = client_hello()


def in_records(hello: bytes, sizes: list[int]) -> bytes:
    """The same handshake message in records of these sizes, the rest in one."""
    body, out, at = hello[5:], b"", 0
    for size in [*sizes, len(body)]:
        part = body[at : at + size]
        if part:
            out += hello[:3] + len(part).to_bytes(2) + part
        at += size
    return out


def test_the_name_that_openssl_sends_is_read() -> None:
    assert server_name_of(HELLO) == NAME
    assert server_name_of(client_hello("localhost", ("h2", "http/1.1"))) == "localhost"


def test_what_comes_behind_the_hello_does_not_matter() -> None:
    assert server_name_of(HELLO + b"\x14\x03\x03\x00\x01\x01") == NAME


@given(st.lists(st.integers(1, 300), max_size=20))
@settings(max_examples=200, deadline=None)
def test_however_it_is_cut_into_records_the_name_is_the_same(sizes: list[int]) -> None:
    assert server_name_of(in_records(HELLO, sizes)) == NAME


@given(st.lists(st.integers(1, 300), max_size=8), st.data())
@settings(max_examples=200, deadline=None)
def test_waiting_for_as_much_as_it_asks_for_reaches_the_name(
    sizes: list[int], data: st.DataObject
) -> None:
    """Each answer asks for more than there is and never for more than there will be."""
    whole = in_records(HELLO, sizes)
    have = data.draw(st.integers(0, 20))
    for _ in range(len(whole)):
        found = server_name_of(whole[:have])
        if not isinstance(found, NeedsMore):
            assert found == NAME
            return
        assert have < found.total <= len(whole)
        have = found.total + data.draw(st.integers(0, 40))
    raise AssertionError("it never had enough")


def test_a_client_that_names_no_server_is_refused() -> None:
    with pytest.raises(NoHello):
        server_name_of(client_hello(None))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\x16\x02\x00\x00\x10",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
        b"\x16\x03\x01\x40\x00\x01\x00\x40\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
    ],
    ids=[
        "http", "ssl2", "other version", "empty record", "huge record", "no hello", "large",
        "alert",
    ],
)  # fmt: skip
def test_what_is_no_hello_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(NoHello):
        server_name_of(data)


def test_no_more_than_the_limit_is_ever_asked_for() -> None:
    large = b"\x16\x03\x01" + (9000).to_bytes(2) + b"\x01" + (8996).to_bytes(3)
    with pytest.raises(NoHello):
        server_name_of(large)
    one_byte_records = in_records(HELLO * 1, [1] * len(HELLO))
    assert len(one_byte_records) < HELLO_BYTES_MAX
    assert server_name_of(one_byte_records) == NAME


def _with_names(names: bytes) -> bytes:
    """HELLO's message with another body of its list of server names."""
    encoded = len(NAME).to_bytes(2) + NAME.encode()
    entry = b"\x00" + encoded
    body = len(entry).to_bytes(2) + entry
    old = b"\x00\x00" + len(body).to_bytes(2) + body
    at = HELLO.index(old)
    grown = len(names) - len(body)
    new = b"\x00\x00" + len(names).to_bytes(2) + names
    message = bytearray(HELLO[:at] + new + HELLO[at + len(old) :])
    for place, width in ((3, 2), (6, 3)):
        was = int.from_bytes(HELLO[place : place + width])
        message[place : place + width] = (was + grown).to_bytes(width)
    extensions = 9 + 34
    for width in (1, 2, 1):
        extensions += width + int.from_bytes(HELLO[extensions : extensions + width])
    was = int.from_bytes(HELLO[extensions : extensions + 2])
    message[extensions : extensions + 2] = (was + grown).to_bytes(2)
    return bytes(message)


def _entry(name: bytes, kind: int = 0) -> bytes:
    return bytes([kind]) + len(name).to_bytes(2) + name


def _list(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return len(body).to_bytes(2) + body


def test_the_way_in_which_names_are_replaced_here_is_right() -> None:
    assert server_name_of(_with_names(_list(_entry(b"other.ingest")))) == "other.ingest"


@pytest.mark.parametrize(
    "names",
    [
        b"",
        _list(),
        _list(_entry(b"")),
        _list(_entry(b"a", kind=1)),
        _list(_entry(b"a"), _entry(b"b")),
        _list(_entry(b"a")) + b"x",
        _list(_entry(b"\xc3\xa4")),
        _list(_entry(b"a" * 256)),
        b"\x00\xff" + _entry(b"a"),
        _list(_entry(b"a"))[:-1],
    ],
)
def test_a_list_of_names_that_is_not_one_plain_name_is_refused(names: bytes) -> None:
    with pytest.raises(NoHello):
        server_name_of(_with_names(names))


@given(st.binary(max_size=400))
@settings(max_examples=500, deadline=None)
def test_any_bytes_have_an_answer(data: bytes) -> None:
    _answer(data)


@given(st.integers(0, len(HELLO) - 1), st.integers(0, 255), st.integers(0, len(HELLO)))
@settings(max_examples=1000, deadline=None)
def test_any_damage_to_a_hello_has_an_answer(at: int, value: int, end: int) -> None:
    damaged = bytearray(HELLO)
    damaged[at] = value
    _answer(bytes(damaged[:end]))


def _answer(data: bytes) -> None:
    try:
        found = server_name_of(data)
    except NoHello:
        return
    if isinstance(found, NeedsMore):
        assert len(data) < found.total <= HELLO_BYTES_MAX
