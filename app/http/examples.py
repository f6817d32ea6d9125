"""An example for every schema, made from the schema: it is always valid and always of today.

What a schema gives itself wins; the rest follows from names and limits.
"""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from app.kit.ids import Kind, show

Schema = dict[str, Any]
_UUID = UUID("0192f3a1-7c4e-7b21-9a53-1f0e6d2c8b47")
_INSTANT = "2026-11-22T10:00:00Z"
_WORDS = (
    "shop",
    "CH",
    "5d41402abc4b2a76b9719d911017c592" * 2,
    "https://login.example.com",
    "data.example.com:443",
    "123456",
    "a long enough password",
)
_OWNER = re.compile(r"(Output|Input|Created|Invited|Join|Change|Whole|Ended)$")


def example_of(schema: Schema, components: dict[str, Schema], name: str = "") -> Any:
    """A value that the schema allows. `name` is of the field that it is for."""
    if "$ref" in schema:
        target = schema["$ref"].rsplit("/", 1)[1]
        return example_of(components[target], components, name)
    for given in ("examples", "enum"):
        if schema.get(given):
            return schema[given][0]
    for given in ("example", "const"):
        if given in schema:
            return _whole(schema, components, schema[given])
    if schema.get("default") is not None:
        return schema["default"]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return example_of(schema[several][0], components, name)
    return _of_type(schema, components, name)


def _whole(schema: Schema, components: dict[str, Schema], given: Any) -> Any:
    """FastAPI leaves out what is null in an example: put it back."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(given, list) and "items" in schema:
        return [_whole(schema["items"], components, one) for one in given]
    if not isinstance(given, dict):
        return given
    fields = schema.get("properties", {})
    there = {name: _whole(fields.get(name, {}), components, value) for name, value in given.items()}
    return {name: None for name in schema.get("required", ()) if name not in given} | there


def _of_type(schema: Schema, components: dict[str, Schema], name: str) -> Any:
    kind = schema.get("type")
    if kind == "object":
        owner = _snake(_OWNER.sub("", schema.get("title", "")))
        return {
            field: example_of(inner, components, f"{owner}_id" if field == "id" else field)
            for field, inner in schema.get("properties", {}).items()
        }
    if kind == "array":
        return [example_of(schema["items"], components, name.removesuffix("s"))]
    if kind == "string":
        return _text(schema, name)
    if kind in ("integer", "number"):
        number: float = 1 if kind == "integer" else 0.5
        return max(number, schema.get("minimum", number))
    return True if kind == "boolean" else None


def _text(schema: Schema, name: str) -> str:
    if schema.get("format") == "date-time" or name.endswith("_at"):
        return _INSTANT
    for kind in Kind:
        if name.endswith(f"{kind.name.lower()}_id"):
            return show(kind, _UUID)
    if name == "profile_id":
        return show(Kind.SERVICE_PROFILE, _UUID)
    words = (w for w in _WORDS if _fits(schema, w))
    return next(words, _WORDS[0])


def _fits(schema: Schema, word: str) -> bool:
    is_long_enough = schema.get("minLength", 0) <= len(word) <= schema.get("maxLength", 1 << 30)
    return is_long_enough and re.search(schema.get("pattern", ""), word) is not None


def _snake(title: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", title).lower()
