"""The TLS connection: who is believed, and what arrives in pieces, too large, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from host_agent.stream import link
from host_agent.stream.errors import CertificateRefused, LinkLost
from host_agent.wire import message
from host_agent.wire.errors import HoldfastError, LimitExceeded, WireError
from host_agent.wire.message import Probe, Received, pack, pack_head
from tests.stream.harness import in_loop

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OURS, THEIRS = trustme.CA(), trustme.CA()


def credentials(folder: Path, authority: trustme.CA = OURS) -> link.Credentials:
    """Files of an agent that believes OURS and shows a certificate of `authority`."""
    ca, certificate, key = (folder / name for name in ("ca.pem", "agent.pem", "agent.key"))
    OURS.cert_pem.write_to_path(str(ca))
    mine = authority.issue_cert("hv-01", common_name="hv-01")
    mine.private_key_pem.write_to_path(str(key))
    with certificate.open("wb") as file:
        for part in mine.cert_chain_pems:
            file.write(part.bytes())
    return link.Credentials(ca, certificate, key)


def server_context(authority: trustme.CA = OURS, name: str = "ingest") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    OURS.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([message.ALPN])
    return context


@contextlib.asynccontextmanager
async def serving(serve: Serve, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server on a port of 127.0.0.1."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        tasks.discard(task)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def idle(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def connect(port: int, folder: Path, authority: trustme.CA = OURS) -> link.TlsLink:
    return await link.connect(("127.0.0.1", port), credentials(folder, authority), "ingest")


def tls_1_2() -> ssl.SSLContext:
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def another_protocol() -> ssl.SSLContext:
    context = server_context()
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda: server_context(THEIRS), CertificateRefused, id="foreign authority"),
        pytest.param(
            lambda: server_context(name="elsewhere"), CertificateRefused, id="another name"
        ),
        pytest.param(tls_1_2, LinkLost, id="an old TLS"),
        pytest.param(another_protocol, LinkLost, id="another protocol"),
        pytest.param(lambda: None, LinkLost, id="no TLS"),
    ],
)
def test_only_a_server_that_is_the_right_one_is_spoken_to(
    tmp_path: Path,
    make: Callable[[], ssl.SSLContext | None],
    error: type[HoldfastError],
) -> None:
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        heard.extend(await reader.read())

    @in_loop
    async def run() -> None:
        async with serving(listen, make()) as port:
            with pytest.raises(error) as caught:
                async with asyncio.timeout(5):
                    await connect(port, tmp_path)
            assert caught.value.message
        if make() is not None:
            assert not heard

    run()


@in_loop
async def test_a_refused_client_certificate_is_suspected(tmp_path: Path) -> None:
    """TLS 1.3 tells a client of it after the handshake, or merely hangs up."""
    async with serving(idle, server_context()) as port:
        one = await connect(port, tmp_path, THEIRS)
        with pytest.raises((CertificateRefused, LinkLost)) as caught:
            await one.receive()
        assert "certificate" in str(caught.value)
        await one.close()


@in_loop
async def test_nobody_there_and_a_server_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(LinkLost):
            await connect(port, tmp_path)
        monkeypatch.setattr(link, "CONNECT_SECONDS", 0.2)
        closed.listen()
        with pytest.raises(LinkLost, match="does not answer"):
            await connect(port, tmp_path)


@pytest.mark.parametrize("name", ["ca.pem", "agent.pem", "agent.key"])
def test_unusable_files_are_a_sentence(tmp_path: Path, name: str) -> None:
    given = credentials(tmp_path)
    for content in (b"", b"no certificate", None):
        path = tmp_path / name
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(CertificateRefused) as caught:
            link.client_context(given)
        assert "[ingest]" in caught.value.hint


@in_loop
async def test_messages_arrive_whole_however_they_are_cut(tmp_path: Path) -> None:
    data = pack(Probe(1)) + pack_head(200, 5) + b"later" + pack(Received(7)) + pack(Probe(2))

    async def slices(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(data), 3):
            writer.write(data[at : at + 3])
            await writer.drain()
            await asyncio.sleep(0.0005)

    async with serving(slices, server_context()) as port:
        one = await connect(port, tmp_path)
        assert [await one.receive() for _ in range(3)] == [Probe(1), Received(7), Probe(2)]
        with pytest.raises(LinkLost, match="ended"):
            await one.receive()
        await one.close()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (pack_head(int(message.MessageType.STORED), 1 << 20), LimitExceeded),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WireError),
        (pack_head(int(message.MessageType.PROBE), 4) + b"null", WireError),
        (pack_head(99, 4) + b"null", WireError),
    ],
)
def test_what_is_no_message_is_refused_before_it_is_read(
    tmp_path: Path, data: bytes, error: type[HoldfastError]
) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await reader.read()

    @in_loop
    async def run() -> None:
        async with serving(say, server_context()) as port:
            one = await connect(port, tmp_path)
            with pytest.raises(error):
                await one.receive()
            await one.close()

    run()


@in_loop
async def test_megabytes_pass_a_slow_reader_while_messages_come_back(tmp_path: Path) -> None:
    sent, heard = os.urandom(8 << 20), bytearray()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(heard) < len(sent):
            heard.extend(await reader.read(256 * 1024))
            writer.write(pack(Received(len(heard))))
            await asyncio.sleep(0.001)
        await reader.read()

    async with serving(slow, server_context()) as port:
        one = await connect(port, tmp_path)
        sending = asyncio.create_task(one.send([sent[:100], sent[100:]]))
        last = 0
        while last < len(sent):
            answer = await one.receive()
            assert isinstance(answer, Received)
            last = answer.seq
        await sending
        assert heard == sent
        await one.close()
        with pytest.raises(LinkLost):
            await one.send([b"x"])


@in_loop
async def test_the_end_of_a_large_message_does_not_wait_for_more(tmp_path: Path) -> None:
    """While it is handed over packets are filled up; what is left then leaves."""
    async with serving(idle, server_context()) as port:
        one = await connect(port, tmp_path)
        seen = []
        push = one._push

        def spying(turn: memoryview) -> bool:
            seen.append(one._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))
            return push(turn)

        one._push = spying  # type: ignore[method-assign]
        await one.send([bytes(1_000_001)])
        assert set(seen) == {1}
        assert one._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0
        await one.close()


@in_loop
async def test_a_reset_while_sending_is_a_lost_connection(tmp_path: Path) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.transport.abort()

    async with serving(leave, server_context()) as port:
        one = await connect(port, tmp_path)
        with pytest.raises(LinkLost):
            for _ in range(100):
                await one.send([bytes(1 << 20)])
        await one.close()
