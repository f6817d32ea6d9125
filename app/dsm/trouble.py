"""Work for one tenant that fails must not stop the work for the others: counted, told, passed."""

from __future__ import annotations

import traceback
from uuid import UUID

from app.dsm.metrics import Metrics
from app.kit.ids import Kind, show
from app.kit.logs import say

_TRACE_LETTERS_MAX = 2_000


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
