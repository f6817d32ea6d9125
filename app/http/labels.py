"""Labels: short pairs that people put on objects and choose objects by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from pydantic import AfterValidator
from sqlalchemy import ColumnElement
from sqlalchemy.orm import InstrumentedAttribute

from app.http.schemas import LABEL_KEY
from app.kit.problems import Problem


def _check(texts: list[str] | None) -> list[str] | None:
    if texts is not None and any(len(text) > 130 for text in texts):
        raise ValueError("is longer than any label")
    return texts


LabelQuery = Annotated[
    list[str] | None,
    AfterValidator(_check),
    Query(
        alias="label",
        max_length=8,
        description="`key=value`, or `key` for any value. Several: all must be there.",
    ),
]


def label_filters(
    column: InstrumentedAttribute[dict[str, Any]], wanted: Sequence[str] | None
) -> list[ColumnElement[bool]]:
    """Conditions of a list; Problem `bad_request` for what is no label."""
    filters: list[ColumnElement[bool]] = []
    for text in wanted or ():
        key, equals, value = text.partition("=")
        if not re.match(LABEL_KEY, key) or (equals and not value) or "\0" in value:
            raise Problem("bad_request", "A label is asked for as `key` or `key=value`.")
        filters.append(column.contains({key: value}) if equals else column.has_key(key))
    return filters
