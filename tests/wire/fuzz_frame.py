"""Fuzzes the decoders: any bytes give a value or a named error, quickly and in little memory.

`python -m tests.wire.fuzz_frame [SECONDS]` uses atheris where it is installed and its own mutations
elsewhere; a short run is part of the tests. What decodes must encode to the same bytes.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from host_agent.wire import tapctl
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.frame import FrameHeader, decode_index, encode_index
from host_agent.wire.keys import GroupKey, check_key_object
from host_agent.wire.message import MessageType, pack, parse_body, parse_head
from host_agent.wire.ring import RingView
from host_agent.wire.seal import decompress
from host_agent.wire.segment import parse_tail, verify_segment
from tests.model.sectors import crc32c
from tests.supervisor.test_hello import client_hello
from tests.wire.samples import GENERATION, IDENTITY
from workers.supervisor.hello import HELLO_BYTES_MAX, NeedsMore, NoHello, server_name_of


def _header(data: bytes) -> None:
    header = FrameHeader.unpack(data)
    assert data[5] or header.pack() == data[: header.length]


def _forged_header(data: bytes) -> None:
    """As one who can compute checksums would send it."""
    if len(data) >= 256:
        length = max(256, min(len(data), int.from_bytes(data[6:8], "little")))
        data = data[:length]
        data = data[:252] + bytes(4) + data[256:]
        _header(data[:252] + crc32c(data).to_bytes(4, "little") + data[256:])


def _index(data: bytes) -> None:
    count, rest = len(data) // 40, len(data) % 40
    first = 1 + 12345 * rest
    plain = data[: count * 40]
    assert encode_index(decode_index(plain, count, first)) == plain


def _tail(data: bytes) -> None:
    info, frames = parse_tail(data)
    assert len(frames) == info.frames


def _forged_tail(data: bytes) -> None:
    if len(data) >= 320:
        _tail(data[:-4] + crc32c(data[-320:-4]).to_bytes(4, "little"))


def _body(data: bytes) -> None:
    number = data[0] if data else 0
    message = parse_body(number, data[1:])
    assert parse_body(number, pack(message)[16:]) == message


def _head(data: bytes) -> None:
    number, _ = parse_head(data[:12] + crc32c(data[:12]).to_bytes(4, "little"))
    assert number in set(MessageType) or number >= 128


def _ring(data: bytes) -> None:
    view = RingView(memoryview(data))
    view.payload_spans(view.records(1, min(17, view.header.index_capacity)))


def _key(data: bytes) -> None:
    check_key_object(data, IDENTITY, GENERATION)


def _unzip(data: bytes) -> None:
    plain = struct.unpack("<H", data[:2].ljust(2, b"\0"))[0]
    assert len(decompress(data[2:], plain)) == plain


def _hello(data: bytes) -> None:
    try:
        found = server_name_of(data)
    except NoHello:
        raise WireError("These bytes name no server.") from None
    if isinstance(found, NeedsMore):
        assert len(data) < found.total <= HELLO_BYTES_MAX


TARGETS: list[Callable[[bytes], object]] = [
    _header,
    _forged_header,
    _index,
    _tail,
    _forged_tail,
    verify_segment,
    _body,
    _head,
    _ring,
    _key,
    _unzip,
    GroupKey.parse,
    tapctl.decode,
    _hello,
]


def one_input(data: bytes) -> bool:
    """The first byte chooses the decoder. Whether the rest decoded; only named errors may come."""
    if not data:
        return False
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except HoldfastError:
        return False
    return True


def seeds() -> list[bytes]:
    """Valid inputs of every decoder, from the golden files' makers."""
    from tests.wire.make_golden import golden_files

    files = golden_files()
    by_target = {
        0: [files["frame.hex"]],
        1: [files["frame.hex"][:336]],
        2: [files["index.hex"]],
        3: [files["segment-data.hex"], files["segment-epoch.hex"]],
        4: [files["segment-data.hex"]],
        5: [files["segment-data.hex"], files["segment-claim.hex"]],
        6: _bodies(files["messages.hex"]),
        7: [files["messages.hex"][:12]],
        8: [files["ring.hex"]],
        9: [files["data-key.json"]],
        10: [b"\x64\0" + bytes.fromhex("28b52ffd2064150000") + b"x"],
        11: [files["group-key.json"]],
        12: [b'{"id": 1, "ok": true, "head": 5}'],
        13: [client_hello()],
    }
    return [bytes([target]) + data for target, inputs in by_target.items() for data in inputs]


def _bodies(packed: bytes) -> list[bytes]:
    bodies = []
    while len(packed) > 16:
        length = int.from_bytes(packed[8:12], "little")
        bodies.append(packed[4:5] + packed[16 : 16 + length])
        packed = packed[16 + length :]
    return bodies


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, bytes set, pieces cut, doubled or replaced by lengths that tempt."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(1, max(2, len(out)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            del out[at : at + rng.choice([1, 4, 40, 1 << 16])]
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice([1, 8, 40, 256])]
        elif kind == 4:
            value = rng.choice([0, 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1])
            packed = value.to_bytes(8, "little")[: rng.choice([2, 4, 8])]
            out[at : at + len(packed)] = packed
        else:
            out[at : at + 8] = rng.randbytes(rng.randrange(16))
    return bytes(out[: 1 << 17])


@dataclass(frozen=True)
class Outcome:
    """What a run did. Times in seconds, memory in KiB."""

    inputs: int
    decoded: int
    slowest: float
    grown: int


def run(seconds: float, seed: int) -> Outcome:
    """Mutate for so long; an assertion or a foreign exception comes through."""
    rng, corpus = random.Random(seed), seeds()
    assert all(one_input(data) for data in corpus if data[0] not in (7, 10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inputs = decoded = 0
    slowest, end = 0.0, time.monotonic() + seconds
    while (begin := time.monotonic()) < end:
        decoded += one_input(mutate(rng, rng.choice(corpus)))
        inputs += 1
        slowest = max(slowest, time.monotonic() - begin)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Outcome(inputs, decoded, slowest, grown)


def main() -> None:
    """With atheris as its own options say, without it for the seconds given. Starts from seeds."""
    try:
        import atheris
    except ImportError:
        print(run(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0, seed=1))
        return

    def test_one_input(data: bytes) -> None:
        one_input(data)

    # Kept from run to run: each goes on from what the one before found.
    corpus = Path(__file__).parents[2] / ".cache" / "fuzz"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / f"seed{number}").write_bytes(data)
    atheris.instrument_all()
    atheris.Setup([*sys.argv, "-rss_limit_mb=1024", str(corpus)], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
