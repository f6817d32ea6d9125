"""How a host is, from what is heard of it. Pure, but for the record's codec.

The record is all that one enterprise's manager ever tells of a host to whoever else depends on the
same machine: five fields, and no sixth is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from host_agent.wire.control import GroupFacts, Name, Number
from host_agent.wire.errors import WireError

HEARTBEATS_MISSED_MAX = 3


class Health(StrEnum):
    """`down`: not heard of. `degraded`: heard of, but not protecting all that it should."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"


class CapacityClass(StrEnum):
    """How much an agent serves: by the groups of this tenant on it, never by their sizes."""

    IDLE = "idle"
    SMALL = "small"
    LARGE = "large"


_LARGE_GROUPS_MIN = 32


def capacity_class(groups: int) -> CapacityClass:
    """The class of an agent with so many groups."""
    if groups == 0:
        return CapacityClass.IDLE
    return CapacityClass.SMALL if groups < _LARGE_GROUPS_MIN else CapacityClass.LARGE


def judge(
    silent_seconds: float | None, heartbeat_seconds: float, tap: str, groups: Sequence[GroupFacts]
) -> tuple[Health, str | None]:
    """(health, reason) of a host. `silent_seconds` None: it is not connected and never was."""
    limit = heartbeat_seconds * HEARTBEATS_MISSED_MAX
    if silent_seconds is None or silent_seconds > limit:
        return Health.DOWN, "silent"
    if tap == "down":
        return Health.DEGRADED, "tap_down"
    reasons = sorted({group.gap_reason for group in groups if group.gap_reason})
    if reasons:
        return Health.DEGRADED, reasons[0]
    return Health.UP, None


class HealthRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes between enterprises."""

    appliance: Name
    health: Health
    capacity_class: CapacityClass
    epoch: Number
    time: Annotated[datetime, Meta(tz=True)]


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(HealthRecord)
_RECORD_BYTES_MAX = 512


def encode_record(record: HealthRecord) -> bytes:
    """As it goes out."""
    return _ENCODER.encode(record)


def decode_record(data: bytes) -> HealthRecord:
    """As it came in; WireError for anything but the five fields."""
    if len(data) > _RECORD_BYTES_MAX:
        raise WireError("A health record is small.")
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(f"This is no health record: {error}.") from None
