"""What the API says of restores."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Text

_Selector = Annotated[Text, StringConstraints(min_length=1, max_length=255)]
_Directory = Annotated[Text, StringConstraints(pattern=r"^/", max_length=1024)]


class RestoreInput(Input):
    """What is brought back where."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "at": "time:2026-11-22T21:30:00Z",
                "host_id": "host_01kb0000000000000000000000",
                "directory": "/var/lib/holdfast/restored/shop",
            }
        }
    )

    at: _Selector = Field(
        default="latest",
        description="The moment: `latest`, `time:…`, `checkpoint:…`, `tag:…`, `seq:…`.",
    )
    host_id: str = Field(description="The host on which the disks are wanted.")
    directory: _Directory = Field(description="A folder of that host; it gets DISK.raw files.")
