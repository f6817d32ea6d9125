"""`holdfast`: what runs the command, and tells how it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from host_agent.wire.errors import HoldfastError
from workers.cli.imports import importing
from workers.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, print_error
from workers.cli.processes import PROCESSES

_Options = TypeVar("_Options")


def _restore_at_once(words: list[str]) -> bool:
    """A restore without typer, for whose import a guest would wait. Whether it was one."""
    if words[:2] == ["restore", "serve"]:
        with importing():
            from workers.cli.options import ServeOptions, read_plain
            from workers.cli.serving import serve_command
        return _ran(serve_command, read_plain(ServeOptions, words[2:]))
    if words[:2] == ["restore", "export"]:
        with importing():
            from workers.cli.exporting import export_command
            from workers.cli.options import ExportOptions, read_plain
        return _ran(export_command, read_plain(ExportOptions, words[2:]))
    return False


def _ran(command: Callable[[_Options], None], options: _Options | None) -> bool:
    if options is not None:
        command(options)
    return options is not None


def _run(words: list[str]) -> None:
    """A process of the service, a restore, or what typer makes of the words."""
    if len(words) == 1 and words[0] in PROCESSES:
        sys.exit(PROCESSES[words[0]]())
    if not _restore_at_once(words):
        from workers.cli.program import make_app

        make_app(*words[:1])()


class InternalError(HoldfastError):
    """Something that should not be possible."""

    code = "internal"


def main() -> None:
    """Run the command; end with 0, 1 (a named error), 2 (usage) or 130 (interrupted)."""
    as_json = "--json" in sys.argv
    try:
        _run(sys.argv[1:])
    except HoldfastError as error:
        print_error(error, as_json=as_json)
        sys.exit(EXIT_FAILED)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if os.environ.get("HOLDFAST_DEBUG"):
            raise
        print_error(
            InternalError(
                f"Something went wrong inside: {type(error).__name__}: {error}.",
                hint="Run it again with HOLDFAST_DEBUG=1 and report what it shows.",
            ),
            as_json=as_json,
        )
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
