"""What is said of each request: a line of the log, and figures for Prometheus.

Neither has what a request carried: no query, no body, no token, and of a path its template alone.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit.ids import Kind, show
from app.kit.logs import say

_log = logging.getLogger("holdfast.api.requests")


class Figures:
    """A registry of its own, so that two applications of one test do not share it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "holdfast_api_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "holdfast_api_request_seconds",
            "From a request's head to the end of its answer, event streams left out.",
            ["method"],
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 1, 5),
            registry=self.registry,
        )
        self.at_work = Gauge(
            "holdfast_api_requests_at_work", "Requests under way.", registry=self.registry
        )


class Observe:
    """Outermost: sees every request, also those that end badly."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app, self._figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 0, time.monotonic()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._figures.at_work.inc()
        try:
            await self._app(scope, receive, noted)
        finally:
            self._figures.at_work.dec()
            self._tell(scope, status, time.monotonic() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", "none")
        # Methods are whatever somebody writes: only those of a route make a series.
        method = scope["method"] if route != "none" else "none"
        self._figures.requests.labels(method, route, str(status)).inc()
        if not route.endswith(":stream"):
            self._figures.seconds.labels(method).observe(seconds)
        if not _log.isEnabledFor(logging.INFO):
            return
        say(
            "request",
            request_id=scope.get("state", {}).get("request_id"),
            method=method,
            route=route,
            status=status,
            ms=round(seconds * 1000, 1),
            **_who(scope.get("state", {}).get("unit")),
        )


def _who(unit: Any) -> dict[str, str | None]:
    """The tenant and the actor, once they are known."""
    if unit is None:
        return {"tenant": None, "actor": None}
    tenant_id = unit.principal.tenant_id
    return {
        "tenant": None if tenant_id is None else show(Kind.TENANT, tenant_id),
        "actor": unit.principal.actor,
    }
