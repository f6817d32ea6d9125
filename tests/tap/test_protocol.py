"""NBD as clients speak it, and as nobody should: a malformed request ends its connection alone."""

from __future__ import annotations

import random
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream
from tests.tap.daemon import Attached, Tap

SIZE = 1 << 20


@pytest.fixture
def attached(tap: Tap, make_disk: MakeDisk) -> Attached:
    return tap.attach(make_disk(SIZE))


@pytest.fixture
def client(attached: Attached) -> nbd.Nbd:
    return nbd.Nbd(attached.nbd_socket, "d")


def test_what_the_export_offers(client: nbd.Nbd) -> None:
    has_flags, flush, fua, trim, zeroes, df, multi, cache = (0, 2, 3, 5, 6, 7, 8, 10)
    for bit in (has_flags, flush, fua, trim, zeroes, df, multi, cache):
        assert client.flags >> bit & 1, bit
    assert not client.flags & 2  # not read-only
    assert client.size == SIZE
    least, preferred, most = client.block_bytes
    assert least == 512
    assert least <= preferred <= most == 32 << 20


def test_options(attached: Attached) -> None:
    talk = nbd.Negotiation(attached.nbd_socket)
    listed = talk.option(nbd.OPT_LIST)
    assert [data for kind, data in listed[:-1]] == [struct.pack(">I", 1) + b"d"]
    assert talk.option(nbd.OPT_INFO, nbd.go_data("d"))[-1][0] == nbd.REP_ACK
    assert talk.option(nbd.OPT_INFO, nbd.go_data("other"))[-1][0] == 1 << 31 | 6
    assert talk.option(77)[-1][0] == 1 << 31 | 1
    assert talk.option(5)[-1][0] == 1 << 31 | 1  # STARTTLS
    assert talk.option(nbd.OPT_GO, b"\0")[-1][0] == 1 << 31 | 3
    assert talk.option(nbd.OPT_STRUCTURED)[-1][0] == nbd.REP_ACK
    contexts = talk.option(nbd.OPT_LIST_META, nbd.meta_data("d"))
    assert contexts[0][1][4:] == b"base:allocation"
    assert talk.option(nbd.OPT_GO, nbd.go_data("d", 0, 3))[-1][0] == nbd.REP_ACK


def test_the_old_way_to_choose_an_export(attached: Attached) -> None:
    for flags, zeroes in ((3, 0), (1, 124)):
        talk = nbd.Negotiation(attached.nbd_socket, flags)
        talk.send(struct.pack(">8sII", b"IHAVEOPT", nbd.OPT_EXPORT_NAME, 1) + b"d")
        size, _ = struct.unpack(">QH", talk.take(10))
        assert size == SIZE
        assert talk.take(zeroes) == bytes(zeroes)
        talk.send(nbd.pack_request(nbd.READ, 9, 0, 512))
        assert talk.take(16) == struct.pack(">IIQ", 0x67446698, 0, 9)
        assert talk.take(512) == bytes(512)


def test_abort_is_answered(attached: Attached) -> None:
    talk = nbd.Negotiation(attached.nbd_socket)
    assert talk.option(nbd.OPT_ABORT)[-1][0] == nbd.REP_ACK
    with pytest.raises(nbd.ConnectionEnded):
        talk.take(1)


@pytest.mark.invariant("I1")
@pytest.mark.parametrize("structured", [True, False])
def test_reads_see_writes(attached: Attached, structured: bool) -> None:
    client = nbd.Nbd(attached.nbd_socket, "d", structured=structured)
    data = random.Random(1).randbytes(9 << 9)
    client.write(512, data)
    assert client.read(512, len(data)) == data
    assert client.read(0, 512) == bytes(512)
    assert client.read(SIZE - 512, 512) == bytes(512)
    client.write(SIZE - 512, data[:512], nbd.FUA)
    client.flush()
    assert client.read(SIZE - 512, 512) == data[:512]
    assert attached.path.read_bytes()[-512:] == data[:512]
    client.trim(512, 1024)
    client.zero(2048, 512, nbd.FUA)
    client.zero(2560, 512, nbd.NO_HOLE)
    expected = bytes(1024) + data[1024:1536] + bytes(1024) + data[2560:]
    assert client.read(512, len(data)) == expected
    assert attached.path.read_bytes()[512 : 512 + len(data)] == expected


def test_block_status(client: nbd.Nbd, attached: Attached) -> None:
    client.write(256 << 10, b"x" * (64 << 10))
    extents = client.status(0, SIZE)
    assert sum(length for length, _ in extents) == SIZE
    where = 0
    for length, flags in extents:
        if flags & 2:  # reads as zeroes: then it must be so
            assert attached.path.read_bytes()[where : where + length] == bytes(length)
        where += length
    assert extents[0] == (256 << 10, 3)
    assert extents[1] == (64 << 10, 0)
    assert len(client.status(0, SIZE, nbd.REQ_ONE)) == 1


def test_cache_is_answered(client: nbd.Nbd) -> None:
    assert client.call(nbd.CACHE, 0, 4096).error == 0


REFUSED: list[tuple[str, int, int, int, int, tuple[int, ...]]] = [
    ("read-beyond", nbd.READ, SIZE, 512, 0, (nbd.EINVAL,)),
    ("read-across", nbd.READ, SIZE - 512, 1024, 0, (nbd.EINVAL,)),
    ("read-nothing", nbd.READ, 0, 0, 0, (nbd.EINVAL,)),
    ("read-too-much", nbd.READ, 0, (32 << 20) + 512, 0, (nbd.EINVAL, 75)),
    ("read-unaligned", nbd.READ, 1, 512, 0, (nbd.EINVAL,)),
    ("read-odd", nbd.READ, 0, 100, 0, (nbd.EINVAL,)),
    ("trim-beyond", nbd.TRIM, SIZE, 512, 0, (nbd.EINVAL,)),
    ("trim-wraps", nbd.TRIM, (1 << 64) - 512, 1024, 0, (nbd.EINVAL,)),
    ("zero-beyond", nbd.ZERO, SIZE - 512, 1024, 0, (nbd.ENOSPC,)),
    ("zero-wraps", nbd.ZERO, (1 << 64) - 512, 1024, 0, (nbd.ENOSPC,)),
    ("zero-all-bits", nbd.ZERO, 0, 0xFFFFFE00, 0, (nbd.ENOSPC,)),
    ("status-beyond", nbd.BLOCK_STATUS, SIZE, 512, 0, (nbd.EINVAL,)),
    ("unknown-command", 9, 0, 0, 0, (nbd.EINVAL,)),
    ("unknown-flag", nbd.READ, 0, 512, 1 << 7, (nbd.EINVAL,)),
    ("flush-with-range", nbd.FLUSH, 512, 512, 0, (nbd.EINVAL,)),
]


@pytest.mark.parametrize("case", REFUSED, ids=[case[0] for case in REFUSED])
def test_impossible_requests_are_refused_and_the_connection_lives(
    client: nbd.Nbd, case: tuple[str, int, int, int, int, tuple[int, ...]]
) -> None:
    _, command, offset, length, flags, errors = case
    assert client.call(command, offset, length, flags=flags).error in errors
    client.write(0, b"y" * 512)
    assert client.read(0, 512) == b"y" * 512


@pytest.mark.parametrize(
    ("offset", "length", "error"),
    [
        (SIZE, 512, nbd.ENOSPC),
        (SIZE - 512, 1024, nbd.ENOSPC),
        (1, 512, nbd.EINVAL),
        (0, 511, nbd.EINVAL),
    ],
)
def test_impossible_writes_are_refused_with_their_data_taken(
    client: nbd.Nbd, attached: Attached, offset: int, length: int, error: int
) -> None:
    assert client.call(nbd.WRITE, offset, data=b"z" * length).error == error
    assert client.read(0, 4096) == bytes(4096)
    assert attached.path.read_bytes() == bytes(SIZE)


@pytest.mark.invariant("I12")
def test_a_write_beyond_the_largest_is_not_done(attached: Attached, client: nbd.Nbd) -> None:
    """Refused with its data taken, or the end of the connection: either is the protocol's."""
    other = nbd.Nbd(attached.nbd_socket, "d")
    with suppress(nbd.ConnectionEnded):
        assert other.call(nbd.WRITE, 0, data=bytes([1]) * (33 << 20)).error == nbd.EINVAL
    assert client.read(0, 4096) == bytes(4096)


def _request(command: int = nbd.READ, length: int = 512, magic: int = 0x25609513) -> bytes:
    return nbd.pack_request(command, 1, 0, length, magic=magic)


MALFORMED: dict[str, bytes] = {
    "wrong-magic": _request(magic=0),
    "reply-magic": _request(magic=0x67446698),
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n........",
    "write-of-4-GiB": _request(nbd.WRITE, 0xFFFFFFFF),
    "zeroes": bytes(28 * 50),
    "noise": random.Random(2).randbytes(4096),
}


@pytest.mark.invariant("I1", "I12")
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_ends_its_connection_and_nothing_else(
    tap: Tap, attached: Attached, client: nbd.Nbd, case: str
) -> None:
    other = nbd.Nbd(attached.nbd_socket, "d")
    other.wire.send(MALFORMED[case])
    with pytest.raises(nbd.ConnectionEnded):
        while True:  # an error reply may come first
            other.wire.take(1)
    client.write(0, b"y" * 512)
    assert client.read(0, 512) == b"y" * 512
    assert tap.group()["state"] in ("dirty", "recording", "syncing")
    nbd.Nbd(attached.nbd_socket, "d").disconnect()


HANDSHAKES: dict[str, bytes] = {
    "client-flags": b"\xff\xff\xff\xff",
    "no-option-magic": struct.pack(">I", 3) + b"NOTMAGIC" + bytes(8),
    "huge-option": struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 7, 0xFFFFFFFF),
    "huge-export-name": struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 1 << 20),
    "unknown-export": struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 5) + b"other",
    "endless-options": struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 3, 0) * 8000,
}


@pytest.mark.invariant("I1", "I12")
@pytest.mark.parametrize("case", HANDSHAKES)
def test_a_malformed_handshake_ends_its_connection_and_nothing_else(
    attached: Attached, client: nbd.Nbd, case: str
) -> None:
    wire = nbd.Wire(attached.nbd_socket)
    wire.take(18)
    try:
        wire.send(HANDSHAKES[case])
        while True:
            wire.take(1)
    except nbd.ConnectionEnded:
        pass
    assert client.read(0, 512) == bytes(512)


@pytest.mark.invariant("I1", "I4")
def test_random_bytes_on_many_connections(tap: Tap, attached: Attached, follow: OpenStream) -> None:
    """After the handshake or before it: the others' data, the ring and the disk stay equal."""
    follower = follow(attached.stream_socket)
    rng = random.Random(20)
    good = nbd.Nbd(attached.nbd_socket, "d")
    for turn in range(60):
        if turn % 2:
            wire: nbd.Wire = nbd.Nbd(attached.nbd_socket, "d").wire
        else:
            wire = nbd.Wire(attached.nbd_socket)
        data = bytearray(_request(rng.randrange(9), rng.choice([0, 512, 4096])) * 3)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(nbd.ConnectionEnded):
            wire.send(bytes(data) + rng.randbytes(rng.randrange(600)))
        if turn % 3:
            wire.close()
        good.write(turn * 512, bytes([turn + 1]) * 512)
    follower.take()
    assert follower.image() == attached.path.read_bytes()
    assert tap.group()["state"] == "recording"


def test_half_a_request_and_gone(attached: Attached, client: nbd.Nbd, follow: OpenStream) -> None:
    """A write whose data never came whole is not done."""
    follower = follow(attached.stream_socket)
    for sent in (1, 27, 28, 28 + 100, 28 + 4095):
        other = nbd.Nbd(attached.nbd_socket, "d")
        whole = nbd.pack_request(nbd.WRITE, 1, 0, 4096) + b"z" * 4096
        other.wire.send(whole[:sent])
        other.close()
    client.write(8192, b"a" * 512)
    follower.take()
    assert follower.image() == attached.path.read_bytes()
    assert client.read(0, 4096) == bytes(4096)


def test_requests_byte_by_byte_and_many_at_once(client: nbd.Nbd) -> None:
    cookie, packed = client.prepare(nbd.WRITE, 0, data=b"q" * 512)
    for at in range(0, len(packed), 7):
        client.wire.send(packed[at : at + 7])
    assert client.receive().cookie == cookie
    sent = [client.prepare(nbd.WRITE, 512 * n, data=bytes([n % 251]) * 512) for n in range(500)]
    client.wire.send(b"".join(packed for _, packed in sent))
    assert {client.receive().cookie for _ in sent} == {cookie for cookie, _ in sent}
    assert client.read(512 * 77, 512) == bytes([77]) * 512


def test_a_client_that_does_not_read_its_answers(attached: Attached, client: nbd.Nbd) -> None:
    """It stops itself and nobody else."""
    lazy = nbd.Nbd(attached.nbd_socket, "d")
    lazy.wire.socket.setblocking(False)
    sent = 0
    while sent < 2000:
        _, packed = lazy.prepare(nbd.READ, 0, 64 << 10)
        try:
            if lazy.wire.socket.send(packed) != len(packed):
                break
        except BlockingIOError:
            break
        sent += 1
    begin = time.monotonic()
    for turn in range(50):
        client.write(turn * 512, b"b" * 512)
    assert time.monotonic() - begin < 5


def test_a_client_that_reads_slowly_is_not_forgotten(attached: Attached) -> None:
    """Nothing but its own answers wakes the tap here: no agent, no other client."""
    slow = nbd.Nbd(attached.nbd_socket, "d", structured=False)
    begin = time.monotonic()
    for _ in range(30):
        for _ in range(8):
            _, packed = slow.prepare(nbd.READ, 0, 1 << 20)
            slow.wire.socket.sendall(packed)
        left = 8 * (16 + (1 << 20))
        while left:
            got = len(slow.wire.socket.recv(min(left, 100_000)))
            assert got
            left -= got
    assert time.monotonic() - begin < 5
    slow.close()


@pytest.mark.invariant("I12")
def test_memory_stays_bounded_while_a_client_does_not_read(tap: Tap, attached: Attached) -> None:
    def resident() -> int:
        pages = int((Path("/proc") / str(tap.pid) / "statm").read_text().split()[1])
        return pages * 4096

    before = resident()
    lazy = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(4)]
    for client in lazy:
        client.wire.socket.setblocking(False)
        try:
            for _ in range(2000):
                client.wire.socket.send(client.prepare(nbd.READ, 0, SIZE)[1])
        except BlockingIOError:
            pass
    time.sleep(0.3)
    assert resident() - before < 256 << 20


def test_two_hundred_connections(attached: Attached) -> None:
    clients = [nbd.Nbd(attached.nbd_socket, "d") for _ in range(200)]
    for number, client in enumerate(clients):
        client.submit(nbd.WRITE, 512 * number, data=bytes([number]) * 512)
    for client in clients:
        assert client.receive().error == 0
    assert clients[3].read(512 * 100, 512) == bytes([100]) * 512


def test_the_sockets_are_for_their_owner_alone(attached: Attached, tap: Tap) -> None:
    for path in (attached.nbd_socket, attached.stream_socket, tap.run_dir / "tap.sock"):
        assert path.stat().st_mode & 0o077 == 0, path


# Tap control


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"id": 1}', b'{"id": 1, "do": 5}', b'{"do": "hello"}',
     b'{"id": 1, "do": "unheard"}', b"[" * 60_000, b"x" * 65_536],
    ids=range(11),
)  # fmt: skip
def test_malformed_control_messages(
    tap: Tap, attached: Attached, client: nbd.Nbd, data: bytes
) -> None:
    """Each gets a refusal or the end of its connection; others live on."""
    for path in (tap.run_dir / "tap.sock", attached.stream_socket):
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        raw.settimeout(5)
        raw.connect(str(path))
        raw.send(data)
        try:
            answer = raw.recv(65_536)
            assert (
                answer == b"" or b'"ok":false' in answer.replace(b" ", b"") or b'"do"' not in data
            )
        except ConnectionResetError:
            pass
        finally:
            raw.close()
    assert tap.call("hello", version=1)["version"] == 1
    assert client.read(0, 512) == bytes(512)
