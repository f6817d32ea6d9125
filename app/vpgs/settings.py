"""How a group is protected: the settings of groups and of service profiles."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from app.http.schemas import Input

_MBIT = Annotated[float, Field(ge=0.1, le=1_000_000)]


class Priority(StrEnum):
    """Who gets the line first."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Settings(Input):
    """How a group is protected."""

    rpo_seconds: int = Field(default=10, ge=1, le=86_400, description="The target.")
    checkpoint_seconds: int = Field(default=5, ge=1, le=3600, description="Between checkpoints.")
    history_hours: int = Field(default=24, ge=1, le=720, description="How far back it can go.")
    journal_bytes_max: int | None = Field(
        default=None,
        ge=1 << 30,
        le=1 << 60,
        description="Makes the history shorter. None: no limit.",
    )
    replication_mbit_per_s: _MBIT | None = Field(default=None, description="None: no limit.")
    sync_mbit_per_s: _MBIT | None = Field(default=None, description="None: no limit.")
    ring_mib: int = Field(default=128, ge=8, le=65_536, description="Memory of the host, MiB.")
    priority: Priority = Priority.MEDIUM
