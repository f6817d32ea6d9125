"""What all schemas share."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

T = TypeVar("T")


class Input(BaseModel):
    """A request's body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Output(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class Page(Output, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: str | None = Field(
        description="Send it as `cursor` for the next page; null on the last one."
    )


class ProblemDocument(Output):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="One of the codes of GET /v1/problems.")
    hint: str = Field(description="What to do.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: str
    errors: list[Any] | None = Field(
        default=None,
        description="The fields that are not valid.",
        examples=[[{"field": "body.name", "message": "Field required"}]],
    )


class ProblemKindOutput(Output):
    """A kind of problem."""

    code: str = Field(examples=["not_found"])
    status: int = Field(examples=[404])
    title: str = Field(examples=["There is no such object."])
    retryable: bool = Field(description="Whether the same request may succeed later.")


class HealthOutput(Output):
    """That the service answers, and which walls stand between tenants' journals."""

    status: str = Field(examples=["up"])
    store_walls: dict[str, int] | None = Field(
        description="How many journal stores keep tenants apart by what: `static`, a credential "
        "for each tenant; `folder`, a local one; `shared`, one credential for all. null: the "
        "database was not asked yet.",
        examples=[{"static": 1}],
    )
    warnings: list[str] = Field(examples=[[]])


class ReadyOutput(Output):
    """That requests can be answered now."""

    ready: bool = Field(examples=[True])


_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def _clean(text: str) -> str:
    if _NOT_SHOWN.search(text):
        raise ValueError("may not contain control or invisible characters")
    if unicodedata.normalize("NFC", text) != text:
        raise ValueError("must be in Unicode's composed form (NFC)")
    return text


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=80, strip_whitespace=True),
    AfterValidator(_clean),
]
Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_clean)]

LABELS_MAX = 32
LABEL_KEY = r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$"
Labels = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=LABEL_KEY)],
        Annotated[Name, StringConstraints(max_length=63)],
    ],
    Field(
        max_length=LABELS_MAX, description="Pairs to choose objects by.", examples=[{"app": "shop"}]
    ),
]
