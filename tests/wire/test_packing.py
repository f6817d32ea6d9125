"""What a payload is packed by: as small as it is worth, and always a frame that any zstd reads."""

from __future__ import annotations

import base64
import os
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire.limits import FRAME_PLAIN_BYTES_MAX, KIB, MIB, SEAL_OVERHEAD_MAX
from host_agent.wire.packing import Packer, as_it_is, is_noise
from host_agent.wire.seal import decompress


def _words() -> bytes:
    rng = random.Random(5)
    words = [bytes(rng.choices(range(97, 123), k=rng.randint(2, 9))) for _ in range(3000)]
    return b" ".join(rng.choice(words) for _ in range(100_000))


def _striped() -> bytes:
    """Noise at the beginning of each 128 KiB, zeroes in what is left of it."""
    return b"".join(os.urandom(8 * KIB) + bytes(120 * KIB) for _ in range(32))


HALF_ZEROES = b"".join(os.urandom(2048) + bytes(2048) for _ in range(256))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(os.urandom(MIB), id="noise"),
        pytest.param(os.urandom(MIB + 4096), id="noise that ends within a block"),
        pytest.param(HALF_ZEROES, id="half zeroes"),
        pytest.param(_words(), id="words"),
        pytest.param(os.urandom(512 * KIB) + _words(), id="noise, then words"),
        pytest.param(base64.b64encode(os.urandom(MIB)), id="noise in few letters"),
        pytest.param(_striped(), id="stripes"),
        pytest.param(b"short" * 100, id="short"),
    ],
)
def test_a_payload_is_packed_as_small_as_at_level_1(payload: bytes) -> None:
    packed = b"".join(Packer().pack_payload(payload))
    assert len(packed) <= 1.01 * len(zstandard.ZstdCompressor(level=1).compress(payload))
    assert decompress(packed, len(payload)) == payload


def test_a_little_that_shrinks_does_not_hide_in_noise() -> None:
    """An eighth is text, in the middle of blocks that are noise otherwise."""
    words = _words()
    payload = b"".join(os.urandom(56 * KIB) + words[at : at + 8 * KIB] for at in range(64))
    packed = b"".join(Packer().pack_payload(payload))
    assert len(packed) < 0.95 * len(payload)
    assert not is_noise(payload)
    assert is_noise(os.urandom(len(payload)))


def test_noise_that_comes_again_is_packed() -> None:
    block = os.urandom(4 * KIB)
    payload = b"".join(block if at % 2 else os.urandom(4 * KIB) for at in range(256))
    assert sum(map(len, Packer().pack_payload(payload, repeats=True))) < 0.6 * len(payload)
    assert sum(map(len, Packer().pack_payload(payload))) > len(payload)


def test_noise_is_neither_packed_nor_copied() -> None:
    noise = os.urandom(MIB)
    pieces = Packer().pack_payload(noise)
    assert sum(len(piece) for piece in pieces if isinstance(piece, memoryview)) == len(noise)
    assert all(piece.obj is noise for piece in pieces if isinstance(piece, memoryview))
    assert not any(isinstance(piece, memoryview) for piece in Packer().pack_payload(HALF_ZEROES))


@given(st.integers(1, 300 * KIB))
@settings(max_examples=50, deadline=None)
def test_what_is_left_as_it_is_opens(length: int) -> None:
    data = os.urandom(length)
    packed = b"".join(as_it_is(data))
    assert zstandard.frame_content_size(packed) == length
    assert decompress(packed, length) == data


def test_the_largest_payload_fits_a_part() -> None:
    data = bytes(FRAME_PLAIN_BYTES_MAX)
    packed = b"".join(as_it_is(data))
    assert len(packed) <= FRAME_PLAIN_BYTES_MAX + SEAL_OVERHEAD_MAX - 16
    assert decompress(packed, len(data)) == data
