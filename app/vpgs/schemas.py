"""What the API says of groups."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from app.datanodes.schemas import DEFAULT_STORE
from app.http.schemas import Input, Labels, Name, Output, Text
from app.vpgs.settings import Settings
from app.vpgs.state import Lifecycle, Link, Recovery, Sla, Sync

MEMBERS_MAX = 256
Id = Annotated[str, StringConstraints(max_length=80)]
StoreName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


_CHANGE: dict[str, Any] = {
    "name": "web shop",
    "description": "",
    "labels": {"app": "shop"},
    "settings": {"rpo_seconds": 10, "history_hours": 24},
    "profile_id": None,
    "protected_site_id": None,
    "recovery_site_id": None,
    "store": DEFAULT_STORE,
}


class VpgBody(Input):
    """What may be said of a group besides its name and its members."""

    description: Text = ""
    labels: Labels = Field(default_factory=dict)
    settings: Settings | None = Field(
        default=None, description="All of them; null takes the service profile's, or defaults."
    )
    profile_id: Id | None = Field(default=None, description="The service profile it is made from.")
    protected_site_id: Id | None = None
    recovery_site_id: Id | None = None
    store: StoreName = Field(default=DEFAULT_STORE, description="Where its journal is.")


class MemberInput(Input):
    """A machine that comes into a group."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"machine_id": "mach_01kb0000000000000000000000"}}
    )

    machine_id: Id
    disk_ids: Annotated[list[Id], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Some of its disks; null takes all that it has."
    )


class VpgChange(VpgBody):
    """A group's settings, whole."""

    model_config = ConfigDict(json_schema_extra={"example": {**_CHANGE}})

    name: Name


class VpgWhole(VpgBody):
    """A group with its members."""

    model_config = ConfigDict(json_schema_extra={"example": {"settings": {"rpo_seconds": 10}}})

    machines: list[MemberInput] = Field(default_factory=list, max_length=MEMBERS_MAX)


class VpgInput(VpgWhole):
    """A group as it is made."""

    model_config = ConfigDict(json_schema_extra={"example": {**_CHANGE, "machines": []}})

    name: Name


VPG_EXAMPLE: JsonDict = {
    "id": "vpg_01kb0000000000000000000000",
    **_CHANGE,
    "lifecycle": "protecting",
    "sync": "in_sync",
    "sla": "meeting",
    "recovery": "none",
    "link": "connected",
    "moved_by": ["pause", "empty", "remove"],
    "rpo_actual_seconds": 4.2,
    "recoverable_at": "2026-11-22T22:10:00Z",
    "history_actual_seconds": 86400.0,
    "oldest_at": "2026-11-21T22:10:00Z",
    "backlog_bytes": 0,
    "gap_reason": None,
    "reported_at": "2026-11-22T22:10:02Z",
    "machines": 2,
    "disks": 3,
    "protected_bytes": 64424509440,
    "retained_bytes": 21474836480,
    "created_at": "2026-11-20T08:00:00Z",
}


class VpgOutput(Output):
    """Machines that are recovered together at one consistent moment."""

    model_config = ConfigDict(json_schema_extra={"example": VPG_EXAMPLE})

    id: str
    name: str
    description: str
    labels: Labels
    settings: Settings
    profile_id: str | None
    protected_site_id: str | None
    recovery_site_id: str | None
    store: str
    lifecycle: Lifecycle
    sync: Sync
    sla: Sla
    recovery: Recovery
    link: Link
    moved_by: list[str] = Field(description="What would move its lifecycle on.")
    rpo_actual_seconds: float | None = Field(
        description="The work that would be lost now; null where nothing was ever safe."
    )
    recoverable_at: datetime | None = Field(description="The newest moment that can be chosen.")
    history_actual_seconds: float | None
    oldest_at: datetime | None = Field(description="The oldest moment that can be chosen.")
    backlog_bytes: int
    gap_reason: str | None = Field(description="Why no moment can be chosen at present.")
    reported_at: datetime | None = Field(description="When its hosts were heard last.")
    machines: int
    disks: int
    protected_bytes: int
    retained_bytes: int | None = Field(
        description="What its journal takes in the store, measured once a day; null until then."
    )
    created_at: datetime


class MemberDiskOutput(Output):
    """A disk of a group."""

    disk_id: str
    name: str = Field(description="Its name in the group's journal.")
    bytes: int
    added_at: datetime


class MemberOutput(Output):
    """A machine of a group, and where it is."""

    machine_id: str
    name: str
    host_id: str | None = Field(description="Null on a host of the provider's.")
    pool_id: str | None = Field(description="The provider's pool in which it runs.")
    is_present: bool
    disks: list[MemberDiskOutput]


class MemberList(Output):
    """All machines of a group."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "items": [
                    {
                        "machine_id": "mach_01kb0000000000000000000000",
                        "name": "web",
                        "host_id": "host_01kb0000000000000000000000",
                        "pool_id": None,
                        "is_present": True,
                        "disks": [
                            {
                                "disk_id": "disk_01kb0000000000000000000000",
                                "name": "web.vda",
                                "bytes": 21474836480,
                                "added_at": "2026-11-22T22:10:00Z",
                            }
                        ],
                    }
                ]
            }
        }
    )

    items: list[MemberOutput]


class ForceSyncInput(Input):
    """What is to be read again."""

    model_config = ConfigDict(json_schema_extra={"example": {"disk_id": None, "full": False}})

    disk_id: Id | None = Field(default=None, description="One disk; null: all of the group.")
    full: bool = Field(default=False, description="Send everything, without comparing first.")
