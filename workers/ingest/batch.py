"""Frames as they arrived, gathered for the next segment. The bytes are never copied here."""

from __future__ import annotations

from dataclasses import dataclass, field

from host_agent.wire.frame import FrameHeader


@dataclass(frozen=True)
class ReceivedFrame:
    """A frame whose clear header was accepted, with its sealed parts as they came."""

    header: FrameHeader
    header_bytes: bytes
    parts: memoryview

    @property
    def index(self) -> memoryview:
        """The sealed index part."""
        return self.parts[: self.header.index_sealed]

    @property
    def payload(self) -> memoryview:
        """The sealed payload part; empty if there is none."""
        return self.parts[self.header.index_sealed :]

    @property
    def length(self) -> int:
        """Bytes that the frame adds to a segment."""
        return len(self.header_bytes) + len(self.parts)


@dataclass
class Batch:
    """What becomes one segment. `opened_at`: when its first frame arrived, monotonic seconds."""

    frames: list[ReceivedFrame] = field(default_factory=list)
    length: int = 0
    opened_at: float = 0.0

    def add(self, frame: ReceivedFrame, now: float) -> None:
        """Append a frame that follows the last."""
        if not self.frames:
            self.opened_at = now
        self.frames.append(frame)
        self.length += frame.length

    @property
    def last_seq(self) -> int:
        """The newest position in it; 0 when empty."""
        return self.frames[-1].header.last_seq if self.frames else 0
