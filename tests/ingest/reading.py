"""An independent reader of what ingest left in the store: everything is checked and opened."""

from __future__ import annotations

from dataclasses import dataclass

from host_agent.wire.keys import open_with_tenant
from host_agent.wire.names import chain_name, chain_prefix, key_name, place_of
from host_agent.wire.seal import FrameOpener
from host_agent.wire.segment import (
    KIND_EPOCH,
    SegmentInfo,
    check_follows,
    parse_tail,
    verify_segment,
)
from tests.servers.agent import Source
from workers.storage.port import ObjectStore


@dataclass(frozen=True)
class ReadChain:
    """The segments of a stream, and the positions of one generation that they hold."""

    segments: list[SegmentInfo]
    seqs: list[int]

    @property
    def epochs(self) -> list[int]:
        return [segment.epoch for segment in self.segments if segment.kind == KIND_EPOCH]

    @property
    def data(self) -> list[SegmentInfo]:
        return [segment for segment in self.segments if segment.kind != KIND_EPOCH]


def read_segments(store: ObjectStore, source: Source) -> list[tuple[SegmentInfo, bytes]]:
    """The whole chain, each segment checked against its hash and the one before it."""
    identity = source.identity
    listed = [place_of(entry.name) for entry in store.list(chain_prefix(identity))]
    assert listed == list(range(1, len(listed) + 1)), "the chain has gaps"
    segments: list[tuple[SegmentInfo, bytes]] = []
    for place in range(1, len(listed) + 1):
        data = store.get(chain_name(identity, place))
        info = verify_segment(data)
        check_follows(segments[-1][0] if segments else None, info)
        segments.append((info, data))
    return segments


def read_chain(store: ObjectStore, source: Source) -> ReadChain:
    """Read, verify and open the whole chain; every record must be the source's own."""
    identity = source.identity
    segments = read_segments(store, source)
    seqs: list[int] = []
    for info, data in segments:
        _, frames = parse_tail(data)
        if info.generation != source.generation or not frames:
            continue
        key = store.get(key_name(identity, source.generation))
        opener = FrameOpener(
            open_with_tenant(key, source.tenant_key, identity, source.generation), identity
        )
        for frame in frames:
            records = opener.open_index(frame.header, frame.header_bytes, frame.index)
            sealed = data[frame.payload_offset : frame.payload_offset + frame.payload_length]
            payload = opener.open_payload(frame.header, frame.header_bytes, sealed)
            first, last = frame.header.first_seq, frame.header.last_seq
            assert (records == source.records[first - 1 : last]).all()
            assert payload == b"".join(source.payloads[first - 1 : last])
            seqs += range(first, last + 1)
    assert seqs == list(range(1, len(seqs) + 1)), "positions are missing or out of order"
    return ReadChain([info for info, _ in segments], seqs)
