"""What ends a session, and what is wrong with a configuration."""

from __future__ import annotations

from enum import StrEnum

from host_agent.wire.errors import HoldfastError


class CloseCode(StrEnum):
    """Why a session ends, as CLOSE says it."""

    FENCED = "fenced"
    NOT_AUTHORISED = "not_authorised"
    BAD_FRAME = "bad_frame"
    SEQUENCE_GAP = "sequence_gap"
    EQUIVOCATION = "equivocation"
    GENERATION_ENDED = "generation_ended"
    STORE_ERROR = "store_error"
    CHAIN_BROKEN = "chain_broken"
    REPLACED = "replaced"
    STOPPING = "stopping"
    PROTOCOL = "protocol"
    LIMIT = "limit"
    IDLE = "idle"


class SessionEnded(HoldfastError):
    """The session ends with this CLOSE. `retry_seconds` None: not without somebody's help."""

    def __init__(
        self,
        close: CloseCode,
        message: str,
        *,
        hint: str = "",
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retryable=retry_seconds is not None)
        self.close = close
        self.retry_seconds = retry_seconds

    @property
    def code(self) -> str:  # type: ignore[override]
        """The close code: what an agent decides by."""
        return self.close.value


class PeerLeft(HoldfastError):
    """The agent closed the connection, or it broke."""

    code = "peer_left"


class BadConfig(HoldfastError):
    """A configuration that cannot be used: the file, a key of it, or a file that it names."""

    code = "bad_config"
