"""Work for one tenant that fails must not stop the work for the others: counted, told, passed."""

from __future__ import annotations

import json
import sys
import traceback
from uuid import UUID

from app.dsm.metrics import Metrics
from app.kit.clock import SystemClock
from app.kit.ids import Kind, show

_TRACE_LETTERS_MAX = 2_000


def say(event: str, **fields: object) -> None:
    """A line of this process's log."""
    line = {"at": SystemClock().now().isoformat(), "event": event, **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)


class Trouble:
    """Where failures go that nobody waits for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def note(self, what: str, tenant_id: UUID, error: Exception) -> None:
        """This failed for this tenant."""
        self._metrics.failures.inc()
        trace = "".join(traceback.format_exception(error))
        say(
            "failed",
            what=what,
            tenant=show(Kind.TENANT, tenant_id),
            error=f"{type(error).__name__}: {error}"[:_TRACE_LETTERS_MAX],
            trace=trace[-_TRACE_LETTERS_MAX:],
        )
