"""Options of commands as dataclasses: what several commands share is written once.

typer reads a function's signature; `command` gives it one that is made from a dataclass's fields.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

T = TypeVar("T")


@dataclass(kw_only=True)
class OutputOptions:
    """How a command answers."""

    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False


@dataclass(kw_only=True)
class StoreOptions(OutputOptions):
    """Which journals, and the key that opens them."""

    store: Annotated[
        str, typer.Option(help="The bucket: file:///folder or s3://bucket/prefix?endpoint=…")
    ]
    tenant: Annotated[str, typer.Option(help="The tenant.")]
    key_file: Annotated[Path, typer.Option(help="The tenant's key file.")]
    group: Annotated[str | None, typer.Option(help="The protection group.")] = None
    host: Annotated[str | None, typer.Option(help="The host, where a group has several.")] = None


@dataclass(kw_only=True)
class PointOptions(StoreOptions):
    """Which moment."""

    at: Annotated[
        str,
        typer.Option(help="checkpoint:ID, tag:TEXT, time:RFC3339, seq:N, latest or latest-write."),
    ]
    map_cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps maps for later restores.")
    ] = None


@dataclass(kw_only=True)
class ListOptions(StoreOptions):
    """Options of `restore list`."""

    verify: Annotated[
        bool, typer.Option("--verify", help="Read and check every stored byte as well.")
    ] = False


@dataclass(kw_only=True)
class ExportOptions(PointOptions):
    """Options of `restore export`."""

    output: Annotated[Path, typer.Option(help="The folder for DISK.raw.")]
    digest: Annotated[
        bool, typer.Option("--digest/--no-digest", help="Take the BLAKE3 of each whole image.")
    ] = False
    force: Annotated[bool, typer.Option("--force", help="Replace images that are there.")] = False


@dataclass(kw_only=True)
class ServeOptions(PointOptions):
    """Options of `restore serve`."""

    socket_dir: Annotated[Path, typer.Option(help="The folder for sockets and scratch files.")]
    fill: Annotated[
        bool, typer.Option("--fill/--no-fill", help="Fetch what nobody asked for yet, too.")
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
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(options)  # type: ignore[arg-type]
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register
