"""Takes a journal apart and puts it together again with every unkeyed hash right: what a hostile
store can do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from host_agent.wire.frame import FrameHeader
from host_agent.wire.names import Identity, chain_name
from host_agent.wire.segment import KIND_DATA, SegmentInfo, build_segment, parse_tail


@dataclass(frozen=True)
class RawFrame:
    """A frame's bytes."""

    header_bytes: bytes
    index: bytes
    payload: bytes


@dataclass
class RawSegment:
    """A segment's trailer and frames."""

    info: SegmentInfo
    frames: list[RawFrame]


def take_apart(objects: dict[str, bytes], identity: Identity) -> list[RawSegment]:
    """All segments of a chain."""
    segments, place = [], 1
    while (data := objects.get(chain_name(identity, place))) is not None:
        info, refs = parse_tail(data)
        frames = [
            RawFrame(
                ref.header_bytes,
                bytes(ref.index),
                data[ref.payload_offset : ref.payload_offset + ref.payload_length],
            )
            for ref in refs
        ]
        segments.append(RawSegment(info, frames))
        place += 1
    return segments


def put_together(segments: list[RawSegment], identity: Identity) -> dict[str, bytes]:
    """Objects of a chain in which everything that needs no key is right."""
    objects: dict[str, bytes] = {}
    before: SegmentInfo | None = None
    for place, segment in enumerate(segments, 1):
        info = replace(
            segment.info,
            place=place,
            previous=before.hash if before else bytes(32),
            identity_hash=identity.hash,
        )
        if info.kind == KIND_DATA:
            first = FrameHeader.unpack(segment.frames[0].header_bytes)
            last = FrameHeader.unpack(segment.frames[-1].header_bytes)
            info = replace(
                info,
                generation=last.generation,
                first_seq=first.first_seq,
                last_seq=last.last_seq,
                time_newest=last.time_last,
                record_hash=last.record_hash,
                state=last.state,
            )
        data, before = build_segment(info, segment.frames)
        objects[chain_name(identity, place)] = data
    return objects
