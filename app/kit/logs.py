"""Log lines of a process: one JSON object a line on standard error.

Values that come from outside are JSON texts, so that no name can make a second line. Nothing secret
is ever given to it.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from app.kit.clock import SystemClock

_TEXT_MAX = 2_000
#: What the logging library itself puts into every record.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def say(event: str, **fields: object) -> None:
    """A line of this process's log."""
    line = {"at": SystemClock().now().isoformat(), "event": event, **fields}
    print(json.dumps(line, default=str), file=sys.stderr, flush=True)


class _Lines(logging.Formatter):
    """What libraries and our own loggers say, as lines of the same form."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_TEXT_MAX],
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)[-_TEXT_MAX:]
        return json.dumps(line, default=str)


def begin_logging(level: str) -> None:
    """From now on loggers of this process write such lines, from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
