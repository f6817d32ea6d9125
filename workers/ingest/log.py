"""Log lines: one event a line, `key=value`, on standard error.

Values that come from outside are written as JSON texts, so that no name can make a second line or
another key. Nothing secret is ever given to it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

_PLAIN = re.compile(r"[A-Za-z0-9_./:+-]{1,200}")
_TEXT_MAX = 500


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text[:_TEXT_MAX])


class Log:
    """Writes lines to a stream; `wall_ns` stamps them, `always` is in each."""

    def __init__(
        self, wall_ns: Callable[[], int], stream: TextIO | None = None, **always: object
    ) -> None:
        self._wall_ns = wall_ns
        self._stream = stream or sys.stderr
        self._always = always

    def info(self, event: str, **fields: object) -> None:
        """Something that happens in ordinary work."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something that somebody should look at."""
        self._write("warning", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        stamp = datetime.fromtimestamp(self._wall_ns() / 1e9, UTC)
        time = stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        words = [f"time={time}", f"level={level}", f"event={event}"]
        words += [f"{key}={_show(value)}" for key, value in (self._always | fields).items()]
        print(" ".join(words), file=self._stream, flush=True)
