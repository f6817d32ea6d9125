"""Options of commands as dataclasses: what several commands share is written once.

typer reads a function's signature; `command` gives it one that is made from a dataclass's fields.
Importing typer takes a fifth of the time until a guest's first read, so only `command` does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    import typer

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """How an option is written, where not as its field, and what it is for."""

    name: str | None = None
    help: str = ""


@dataclass(kw_only=True)
class OutputOptions:
    """How a command answers."""

    json: Annotated[bool, Option("--json", help="Answer with one JSON object.")] = False


@dataclass(kw_only=True)
class StoreOptions(OutputOptions):
    """Which journals, and the key that opens them."""

    store: Annotated[
        str, Option(help="The bucket: file:///folder or s3://bucket/prefix?endpoint=…")
    ]
    tenant: Annotated[str, Option(help="The tenant.")]
    key_file: Annotated[Path, Option(help="The tenant's key file.")]
    group: Annotated[str | None, Option(help="The protection group.")] = None
    host: Annotated[str | None, Option(help="The host, where a group has several.")] = None


@dataclass(kw_only=True)
class PointOptions(StoreOptions):
    """Which moment."""

    at: Annotated[
        str,
        Option(help="checkpoint:ID, tag:TEXT, time:RFC3339, seq:N, latest or latest-write."),
    ]
    map_cache: Annotated[
        Path | None, Option(help="A folder that keeps maps for later restores.")
    ] = None


@dataclass(kw_only=True)
class ListOptions(StoreOptions):
    """Options of `restore list`."""

    verify: Annotated[
        bool, Option("--verify", help="Read and check every stored byte as well.")
    ] = False


@dataclass(kw_only=True)
class ExportOptions(PointOptions):
    """Options of `restore export`."""

    output: Annotated[Path, Option(help="The folder for DISK.raw.")]
    digest: Annotated[
        bool, Option("--digest/--no-digest", help="Take the BLAKE3 of each whole image.")
    ] = False
    force: Annotated[bool, Option("--force", help="Replace images that are there.")] = False


@dataclass(kw_only=True)
class ServeOptions(PointOptions):
    """Options of `restore serve`."""

    socket_dir: Annotated[Path, Option(help="The folder for sockets and scratch files.")]
    fill: Annotated[
        bool, Option("--fill/--no-fill", help="Fetch what nobody asked for yet, too.")
    ] = True


def command(
    app: typer.Typer, name: str, options: type[T]
) -> Callable[[Callable[[T], None]], Callable[[T], None]]:
    """Register a function that takes one options object as the command `name`."""

    def register(function: Callable[[T], None]) -> Callable[[T], None]:
        def run(**values: Any) -> None:
            function(options(**values))

        hints = get_type_hints(options, include_extras=True)
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.default is dataclasses.MISSING
                else field.default,
                annotation=_for_typer(hints[field.name]),
            )
            for field in dataclasses.fields(options)  # type: ignore[arg-type]
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


def _for_typer(hint: Any) -> Any:
    """A field's type with typer's own kind of option."""
    import typer

    kind, option = hint.__origin__, hint.__metadata__[0]
    if not isinstance(option, Option):
        return hint
    names = () if option.name is None else (option.name,)
    return Annotated[kind, typer.Option(*names, help=option.help)]


def read_plain(options: type[T], words: Sequence[str]) -> T | None:
    """The options of a command line that has nothing but known options, each once.

    None for any other: typer reads those, and explains what is wrong. What it needs for that takes
    longer to import than a guest should wait for its first read.
    """
    flags, values = _plain_words(options)
    found: dict[str, Any] = {}
    left = iter(words)
    for word in left:
        if word in flags:
            name, value = flags[word]
        elif word in values and (text := next(left, "-"))[:1] not in ("", "-"):
            name, kind = values[word]
            value = kind(text)
        else:
            return None
        if name in found:
            return None
        found[name] = value
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    return options(**found) if needed <= found.keys() else None


def _plain_words(
    options: type[Any],
) -> tuple[dict[str, tuple[str, Any]], dict[str, tuple[str, type[Any]]]]:
    """Flags with what they set, and options with the types of their values."""
    flags: dict[str, tuple[str, Any]] = {}
    values: dict[str, tuple[str, type[Any]]] = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, option = hint.__origin__, hint.__metadata__[0]
        if kind is bool:
            on, _, off = str(option.name).partition("/")
            flags[on] = (name, True)
            if off:
                flags[off] = (name, False)
        elif kind in (str, str | None, Path, Path | None):
            is_path = kind in (Path, Path | None)
            values["--" + name.replace("_", "-")] = (name, Path if is_path else str)
    return flags, values
