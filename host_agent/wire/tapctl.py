"""Tap control messages: one JSON object each. FORMAT.md section 3."""

from __future__ import annotations

from typing import Any

import msgspec

from host_agent.wire import limits
from host_agent.wire.errors import HoldfastError, LimitExceeded, WireError

VERSION = 1

Fields = dict[str, Any]


class TapRefused(HoldfastError):
    """The tap answered with an error; `code` is the tap's own."""

    def __init__(self, answer: Fields) -> None:
        super().__init__(
            str(answer.get("message", "The tap refused.")),
            hint=str(answer.get("hint", "")),
            retryable=bool(answer.get("retry", False)),
        )
        self.code = str(answer.get("error", "refused"))


def encode(message: Fields) -> bytes:
    """One datagram; LimitExceeded if it would not fit."""
    data = msgspec.json.encode(message)
    if len(data) > limits.TAP_MESSAGE_BYTES_MAX:
        raise LimitExceeded(f"A tap control message of {len(data)} bytes is larger than allowed.")
    return data


def request(number: int, verb: str, **fields: object) -> bytes:
    """A request, ready to send."""
    return encode({"id": number, "do": verb, **fields})


def decode(data: bytes) -> Fields:
    """An answer or an event; WireError if it is neither."""
    if len(data) > limits.TAP_MESSAGE_BYTES_MAX:
        raise LimitExceeded(f"A tap control message of {len(data)} bytes is larger than allowed.")
    try:
        message = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"The tap sent something malformed: {error}.") from None
    if not isinstance(message, dict):
        raise WireError("The tap sent something that is no object.")
    return message


def answer(message: Fields) -> Fields:
    """The answer's fields; TapRefused if it is a refusal."""
    if message.get("ok") is not True:
        raise TapRefused(message)
    return message
