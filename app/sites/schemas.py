"""What the API says of sites."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Name, Output, Text

Territory = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$"),
    Field(description="ISO 3166 code of the country or region whose law holds there."),
]


class SiteInput(Input):
    """A site as it is made or replaced."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "Zürich 1", "territory": "CH", "description": ""}}
    )

    name: Name
    territory: Territory
    description: Text = ""


class SiteOutput(Output):
    """A place with hypervisors."""

    id: str
    name: str
    territory: str
    description: str
    pool_id: str | None = Field(description="The provider's pool that it stands for.")
    created_at: datetime
