"""What the API says of restores."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

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
    host_id: str | None = Field(default=None, description="The host on which they are wanted.")
    pool_id: str | None = Field(
        default=None, description="Instead of a host: some host of this pool of the provider's."
    )
    directory: _Directory = Field(description="A folder of that host; it gets DISK.raw files.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.host_id is None) == (self.pool_id is None):
            raise ValueError("name either host_id or pool_id")
        return self
