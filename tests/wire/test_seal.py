"""Sealed parts: they open where they belong and nowhere else. Each defence has a planted hole."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import limits
from host_agent.wire import seal as sealing
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import HoldfastError, LimitExceeded, UnsealFailed, WireError, WrongKey
from host_agent.wire.frame import FrameHeader, Marker
from host_agent.wire.names import Identity
from host_agent.wire.record import Flag, Op, Records
from host_agent.wire.seal import FrameOpener, FrameSealer, SealedFrame, decompress, frame_keys
from tests.wire.samples import (
    DATA_KEY,
    GENERATION,
    IDENTITY,
    SALT,
    Batch,
    batches,
    seal,
    typical,
)

OTHER_KEY = bytes(32)


def opener(key: bytes = DATA_KEY, identity: Identity = IDENTITY) -> FrameOpener:
    return FrameOpener(key, identity)


def open_frame(frame: SealedFrame, with_: FrameOpener | None = None) -> tuple[Records, bytes]:
    """Everything that a reader does with a frame's bytes."""
    header = FrameHeader.unpack(frame.header_bytes)
    reader = with_ or opener()
    return (
        reader.open_index(header, frame.header_bytes, frame.index),
        reader.open_payload(header, frame.header_bytes, frame.payload),
    )


@given(batches())
@settings(max_examples=40, deadline=None)
def test_what_was_sealed_opens(batch: Batch) -> None:
    frame = seal(batch)
    records, payload = open_frame(frame)
    assert records.tobytes() == batch.records.tobytes()
    assert payload == batch.payload
    assert frame.header.disk_bytes == sum(r[4] for r in batch.rows if r[8] in (1, 2, 3, 6, 7))


Sealed = tuple[FrameHeader, bytes, bytes]


def in_frames(batch: Batch, cuts: list[int]) -> list[Sealed]:
    """A batch as several frames that follow one another."""
    edges = [0, *sorted({cut % len(batch.rows) for cut in cuts} - {0}), len(batch.rows)]
    sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    frames = [
        seal(Batch(batch.start, batch.rows[a:b], batch.payloads[a:b]), sealer)
        for a, b in pairwise(edges)
    ]
    return [(frame.header, frame.header_bytes, frame.index) for frame in frames]


@given(batches(), st.lists(st.integers(0, 30), max_size=6))
@settings(max_examples=60, deadline=None)
def test_frames_opened_together_are_what_each_is_alone(batch: Batch, cuts: list[int]) -> None:
    frames = in_frames(batch, cuts)
    together = opener().open_indexes(frames)
    assert [r.tobytes() for r in together] == [
        opener().open_index(*frame).tobytes() for frame in frames
    ]


def test_frames_opened_together_name_what_is_wrong_as_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = in_frames(typical(), [3, 6, 11])
    check = sealing._check_agreement

    def lying(header: FrameHeader, records: Records) -> None:
        check(replace(header, disk_bytes=header.disk_bytes + 1), records)

    for field in ("payload_plain", "time_first", "time_last", "disk_bytes", "flags"):
        header, head, index = frames[1]
        wrong = replace(header, **{field: getattr(header, field) ^ 1})
        assert not sealing._agree(
            [frames[0][0], wrong], np.concatenate(opener().open_indexes(frames[:2])),
            [0, frames[0][0].records, frames[0][0].records + header.records],
        )  # fmt: skip
        assert head
        assert index
    monkeypatch.setattr(sealing, "_agree", lambda *_: False)
    monkeypatch.setattr(sealing, "_check_agreement", lying)
    with pytest.raises(WireError):
        opener().open_indexes(frames)


def test_a_frame_without_payload() -> None:
    batch = Batch()
    batch.add(Op.FLUSH)
    frame = seal(batch)
    assert frame.payload == b""
    assert frame.header.payload_sealed == 0
    assert open_frame(frame)[1] == b""


def test_header_flags_say_what_the_records_hold() -> None:
    cases = [((Op.BEGIN,), 1), ((Op.END,), 2), ((Op.BEGIN, Op.END), 3), ((Op.FLUSH,), 0)]
    for ops, flags in cases:
        batch = Batch()
        for op in ops:
            batch.add(op)
        assert seal(batch).header.flags == flags
    batch = Batch()
    batch.add(Op.WRITE, flags=Flag.MORE)
    assert seal(batch).header.flags == 4


def _with_part(frame: SealedFrame, part: str, data: bytes) -> SealedFrame:
    return replace(frame, **{part: data})  # type: ignore[arg-type]


@pytest.mark.invariant("I10")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    frame = seal(typical())
    part = data.draw(st.sampled_from(["header_bytes", "index", "payload"]))
    spoiled = bytearray(getattr(frame, part))
    spoiled[data.draw(st.integers(0, len(spoiled) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(HoldfastError):
        open_frame(_with_part(frame, part, bytes(spoiled)))


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("part", ["index", "payload"])
@pytest.mark.parametrize("keep", [0, 1, 15, 16, 17, -1])
def test_cut_off_parts_are_refused(part: str, keep: int) -> None:
    frame = seal(typical())
    with pytest.raises(WireError):
        open_frame(_with_part(frame, part, getattr(frame, part)[:keep]))


def _reheader(frame: SealedFrame, header: FrameHeader) -> SealedFrame:
    """The same parts under a header that was changed and given a right checksum."""
    return replace(frame, header=header, header_bytes=header.pack())


def _swapped() -> SealedFrame:
    """Index and payload exchanged, with a header that has both lengths the other way round."""
    batch = Batch()
    for _ in range(3):
        batch.add(Op.MARK)
    frame = seal(batch)
    header = replace(frame.header, index_sealed=len(frame.payload), payload_sealed=len(frame.index))
    return replace(_reheader(frame, header), index=bytes(frame.payload), payload=frame.index)


def _two() -> tuple[SealedFrame, SealedFrame]:
    """Two consecutive frames of one connection, of equal lengths."""
    sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    frames = []
    for after in (0, 1):
        batch = Batch()
        batch.add(Op.WRITE, after=after, offset=512 * after)
        frames.append(seal(batch, sealer))
    return frames[0], frames[1]


def _part_of_another() -> SealedFrame:
    first, second = _two()
    return replace(first, payload=second.payload)


def _replayed_later() -> SealedFrame:
    first, second = _two()
    header = replace(
        second.header, index_sealed=len(first.index), payload_sealed=len(first.payload)
    )
    return _reheader(first, header)


ATTACKS: dict[str, Callable[[], SealedFrame]] = {
    "another-generation": lambda: _reheader(
        seal(typical()), replace(seal(typical()).header, generation=bytes(16))
    ),
    "another-counter": lambda: _reheader(
        seal(typical()), replace(seal(typical()).header, counter=1)
    ),
    "another-state": lambda: _reheader(seal(typical()), replace(seal(typical()).header, state=3)),
    "another-record-hash": lambda: _reheader(
        seal(typical()), replace(seal(typical()).header, record_hash=bytes(32))
    ),
    "without-its-markers": lambda: _reheader(
        seal(typical()), replace(seal(typical()).header, markers=())
    ),
    "at-another-sequence": lambda: _reheader(
        seal(typical()), replace(seal(typical()).header, first_seq=2, last_seq=18, markers=())
    ),
    "parts-swapped": _swapped,
    "payload-of-another-frame": _part_of_another,
    "replayed-at-a-later-place": _replayed_later,
}


@pytest.mark.invariant("I10")
@pytest.mark.parametrize("attack", ATTACKS)
def test_parts_open_only_where_they_belong(attack: str) -> None:
    with pytest.raises(UnsealFailed) as caught:
        open_frame(ATTACKS[attack]())
    assert caught.value.hint


@pytest.mark.invariant("I9", "I16")
@pytest.mark.parametrize("field", ["tenant", "group", "host"])
def test_frames_of_another_stream_do_not_open_even_with_its_key(field: str) -> None:
    other = replace(IDENTITY, **{field: "other"})
    with pytest.raises(UnsealFailed):
        open_frame(seal(typical()), opener(identity=other))


def test_another_key_is_named_as_such() -> None:
    with pytest.raises(WrongKey) as caught:
        open_frame(seal(typical()), opener(OTHER_KEY))
    assert "data key" in caught.value.message


def test_a_commitment_to_another_key_does_not_help() -> None:
    """Key commitment: a header that names the reader's key must still fail under it."""
    frame = seal(typical())
    commitment = frame_keys(OTHER_KEY, SALT)[1]
    forged = _reheader(frame, replace(frame.header, commitment=commitment))
    with pytest.raises(UnsealFailed):
        open_frame(forged, opener(OTHER_KEY))


# The planted holes: with each defence taken away, the attack above that it stops gets through.


def test_control_authenticated_data_without_the_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sealing, "_authenticated", lambda part, identity, header: bytes([part]) + header
    )
    open_frame(seal(typical()), opener(identity=replace(IDENTITY, tenant="other")))


def test_control_authenticated_data_without_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sealing, "_authenticated", lambda part, identity, header: identity.seal_bytes
    )
    frame = _reheader(seal(typical()), replace(seal(typical()).header, generation=bytes(16)))
    open_frame(frame)


def test_control_one_nonce_for_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the part in nonce and authenticated data, a payload opens as an index."""
    monkeypatch.setattr(sealing, "_nonce", lambda part, counter: counter.to_bytes(12, "little"))
    monkeypatch.setattr(sealing, "_authenticated", lambda part, identity, header: b"")
    with pytest.raises(WireError):  # it opens, and only then proves to be no index
        open_frame(_swapped())


def test_control_a_counter_that_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the uniqueness test below must notice."""
    seen = _nonces(monkeypatch, restart=True)
    assert len(set(seen)) < len(seen)


@pytest.mark.invariant("I16")
def test_no_key_and_nonce_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _nonces(monkeypatch, restart=False)
    assert len(seen) == 40
    assert len(set(seen)) == len(seen)


def _nonces(monkeypatch: pytest.MonkeyPatch, restart: bool) -> list[tuple[bytes, bytes]]:
    """(key, nonce) of all that is sealed over two connections with a failed seal in each."""
    seen: list[tuple[bytes, bytes]] = []

    def spying(algorithm: AES256, mode: GCM) -> object:
        seen.append((bytes(algorithm.key), bytes(mode.initialization_vector)))
        return original(algorithm, mode)

    original = Cipher
    monkeypatch.setattr(sealing, "Cipher", spying)
    for salt in (SALT, SALT if restart else bytes(32)):
        sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, salt)
        for turn in range(11):
            if turn == 5:
                with pytest.raises(WireError):
                    sealer.seal(typical().records, b"", state=1, record_hash=bytes(32))
                continue
            seal(typical(), sealer)
    return seen


def test_counter_grows_over_failures() -> None:
    sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    assert seal(typical(), sealer).header.counter == 0
    with pytest.raises(WireError):
        sealer.seal(typical().records, typical().payload, state=2, record_hash=bytes(32))
    assert seal(typical(), sealer).header.counter > 0


def test_what_no_reader_would_take_is_not_sealed() -> None:
    sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    batch = typical()
    records, payload = batch.records, batch.payload

    def attempt(rows: Records, data: bytes, markers: tuple[Marker, ...] = ()) -> None:
        sealer.seal(rows, data, state=1, record_hash=bytes(32), markers=markers)

    with pytest.raises(LimitExceeded):
        attempt(records[:0], b"")
    with pytest.raises(LimitExceeded):
        attempt(records, bytes(limits.FRAME_PLAIN_BYTES_MAX + 1))
    with pytest.raises(WireError, match="payload"):
        attempt(records, payload[:-1])
    gap = records.copy()
    gap["seq"][5:] += 1
    with pytest.raises(WireError, match="sequence"):
        attempt(gap, payload)
    mark = batch.markers[0]
    for wrong in (replace(mark, seq=3, time=int(records[2]["time"])), replace(mark, scope=3)):
        with pytest.raises(WireError, match="no such marker"):
            attempt(records, payload, (wrong,))
    with pytest.raises(WireError):
        FrameSealer(DATA_KEY, IDENTITY, GENERATION, bytes(31))
    with pytest.raises(WireError):
        FrameSealer(DATA_KEY, IDENTITY, bytes(15), SALT)


def test_decompression_is_bounded_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    assert len(bomb) < 16 << 10
    with pytest.raises(WireError, match="length"):
        decompress(bomb, 4096)


def test_decompression_wants_one_frame_with_its_size() -> None:
    packed = zstandard.ZstdCompressor(level=1).compress(b"x" * 100)
    assert decompress(packed, 100) == b"x" * 100
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"x" * 100)
    for bad in (packed + b"\0", packed + packed, packed[:-1], unsized, b"", b"\x28\xb5\x2f\xfd"):
        with pytest.raises(WireError):
            decompress(bad, 100)


@given(st.binary(max_size=200), st.integers(0, 300))
@settings(max_examples=150, deadline=None)
def test_decompression_is_total(data: bytes, plain: int) -> None:
    with suppress(WireError):
        assert len(decompress(data, plain)) == plain


def test_the_largest_frame_fits() -> None:
    batch = Batch()
    for _ in range(4):
        batch.add(Op.WRITE, length=1 << 20)
    payload = b"".join(batch.payloads)
    assert len(payload) == limits.FRAME_PLAIN_BYTES_MAX
    records, opened = open_frame(seal(batch))
    assert len(records) == 4
    assert opened == payload


@pytest.mark.parametrize(("distinct", "share"), [(256, 1.0), (2, 0.1)])
def test_blocks_that_come_again_are_sealed_once(distinct: int, share: float) -> None:
    blocks, batch = [os.urandom(4096) for _ in range(distinct)], Batch()
    for _ in range(256):
        batch.add(Op.WRITE, length=4096)
    payload = b"".join(blocks[at % distinct] for at in range(256))
    records = batch.records.copy()
    records["crc"] = [crc32c(blocks[at % distinct]) for at in range(256)]
    sealer = FrameSealer(DATA_KEY, IDENTITY, GENERATION, SALT)
    frame = sealer.seal(records, payload, state=1, record_hash=bytes(32))
    assert len(frame.payload) <= share * len(payload) + 1024
    assert open_frame(frame)[1] == payload
