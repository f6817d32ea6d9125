"""What hosts report of machines, and what the API says of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from app.http.schemas import Input, Labels, Output

MACHINES_MAX = 4096
DISKS_MAX = 64
#: As a hypervisor names things: anything that can be shown.
Reported = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Place = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f\x7f]{0,1023}$")]


class PathSource(BaseModel):
    """A disk that is a file or a device of the host."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["path"] = "path"
    path: Place


class QmpSource(BaseModel):
    """A disk of a machine that runs, through its QEMU monitor."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["qmp"] = "qmp"
    socket: Place
    node: Reported


Source = Annotated[PathSource | QmpSource, Field(discriminator="kind")]


class ReportedDisk(BaseModel):
    """A disk in an inventory."""

    name: Reported
    source: Source
    bytes: int = Field(ge=0, le=1 << 60)


class ReportedMachine(BaseModel):
    """A machine in an inventory."""

    name: Reported
    uuid: Annotated[str, StringConstraints(max_length=64)] | None = None
    disks: list[ReportedDisk] = Field(max_length=DISKS_MAX)


class Inventory(BaseModel):
    """All that a host has."""

    machines: list[ReportedMachine] = Field(max_length=MACHINES_MAX)
    digest: Annotated[str, StringConstraints(max_length=128)]


_EXAMPLE: JsonDict = {
    "id": "mach_01kb0000000000000000000000",
    "name": "web",
    "host_id": "host_01kb0000000000000000000000",
    "pool_id": None,
    "uuid": None,
    "labels": {"app": "shop"},
    "is_present": True,
    "disks": [
        {
            "id": "disk_01kb0000000000000000000000",
            "name": "vda",
            "bytes": 21474836480,
            "is_present": True,
            "vpg_id": "vpg_01kb0000000000000000000000",
        }
    ],
    "created_at": "2026-11-22T22:10:00Z",
    "seen_at": "2026-11-22T22:10:00Z",
}


class DiskOutput(Output):
    """A virtual disk of a machine."""

    id: str
    name: str
    bytes: int
    is_present: bool
    vpg_id: str | None = Field(description="The group that protects it.")


class MachineOutput(Output):
    """A virtual machine that a host has, or had."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    name: str
    host_id: str | None = Field(description="Null on a host of the provider's.")
    pool_id: str | None = Field(description="The provider's pool in which it runs.")
    uuid: str | None = Field(description="The hypervisor's own, if it told one.")
    labels: Labels
    is_present: bool = Field(description="Whether the newest inventory of its host has it.")
    disks: list[DiskOutput]
    created_at: datetime
    seen_at: datetime


class LabelsInput(Input):
    """All labels of a machine."""

    model_config = ConfigDict(json_schema_extra={"example": {"labels": {"app": "shop"}}})

    labels: Labels
