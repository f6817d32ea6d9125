"""Settings as TOML tables that know where they stand, so that errors can say so. No I/O."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from host_agent.wire.errors import BadName, HoldfastError
from host_agent.wire.names import check_name


class Table:
    """One table of a file. A room's subclass says its error and which example describes it."""

    error: ClassVar[type[HoldfastError]] = HoldfastError
    example: ClassVar[str] = ""

    def __init__(self, content: Mapping[str, Any], prefix: str, path: Path) -> None:
        self._content = content
        self._prefix = prefix
        self.file_path = path
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        self._known.add(key)
        return key in self._content

    def keys(self) -> list[str]:
        """What the file has here."""
        return list(self._content)

    def wrong(self, key: str, what: str, hint: str = "") -> HoldfastError:
        """The room's error about a setting, to be raised."""
        shown = f"{self._prefix}{key}"
        return self.error(
            f"{self.file_path}: {shown} {what}.", hint=hint or f"Correct {shown}; {self.example}"
        )

    def table(self, key: str, *, required: bool = True) -> Self:
        """A table inside; an empty one if it is absent and not required."""
        if key not in self and not required:
            return type(self)({}, f"{self._prefix}{key}.", self.file_path)
        value = self._take(key, dict, f"a table, [{self._prefix}{key}]")
        return type(self)(value, f"{self._prefix}{key}.", self.file_path)

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value: str = self._take(key, str, "a text in quotes")
        if not value or "\0" in value:
            raise self.wrong(key, "is empty or contains a zero character")
        return value

    def texts(self, key: str, *, may_be_empty: bool = False) -> list[str]:
        """A list of texts, by default at least one."""
        values: list[str] = self._take(key, list, "a list of texts")
        if not (values or may_be_empty) or not all(isinstance(value, str) for value in values):
            raise self.wrong(key, 'must be a list of texts, such as ["shop"] or ["*"]')
        return values

    def name(self, key: str) -> str:
        """A name as names in the store are."""
        try:
            return check_name(key, self.text(key))
        except BadName as error:
            raise self.wrong(key, f"is wrong: {error.message.rstrip('.')}", error.hint) from None

    def number(self, key: str, low: float, high: float, default: float) -> float:
        """A number within bounds."""
        if key not in self:
            return default
        value = float(self._take(key, (int, float), "a number"))
        if not low <= value <= high:
            raise self.wrong(key, f"must be from {low:g} to {high:g}, not {value:g}")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        return default if key not in self else bool(self._take(key, bool, "true or false"))

    def path(self, key: str, default: Path | None = None) -> Path:
        """A path, relative to the file that names it."""
        if default is not None and key not in self:
            return default
        return (self.file_path.parent / self.text(key)).absolute()

    def end(self) -> None:
        """The room's error if there is a key that nobody asked for."""
        for key in self._content:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Remove it; {self.example}"
                raise self.wrong(key, "is not a setting", hint)

    def _take(self, key: str, kind: type | tuple[type, ...], word: str) -> Any:
        if key not in self:
            raise self.wrong(key, "is missing", f"Add {self._prefix}{key}; {self.example}")
        value = self._content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(key, f"must be {word}")
        return value
