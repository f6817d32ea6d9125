"""Figures of a process for Prometheus. No tenant's name is in any."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """A registry of its own, so that two processes in one test do not share it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = self._gauge("connections", "Hosts that are connected here.")
        self.managed = self._gauge("managed_places", "Places that this process manages.")
        self.received = self._counter("messages_received", "Messages of hosts.")
        self.sent = self._counter("messages_sent", "Messages to hosts.")
        self.withheld = self._counter("messages_withheld", "Not sent: there was no lease to act.")
        self.malformed = self._counter("messages_malformed", "Messages that ended a connection.")
        self.refused = Counter(
            "holdfast_dsm_connections_refused",
            "Connections that were not let in.",
            ["reason"],
            registry=self.registry,
        )
        self.takeovers = self._counter("takeovers", "Places that this process began to manage.")
        self.leases_lost = self._counter("leases_lost", "Leases that ran out.")
        self.row_writes = self._counter("status_writes", "Rows of hosts' status that were written.")
        self.checkpoints = self._counter("checkpoints", "Checkpoints that hosts confirmed.")
        self.checkpoints_failed = self._counter("checkpoints_failed", "Checkpoints that failed.")
        self.commands = self._counter("commands", "Commands of the table that are at their end.")
        self.failures = self._counter("failures", "Work for one tenant that failed.")
        self.stalls = self._counter("loop_stalls", "Times that the loop ran over 5 ms.")
        self.response = Histogram(
            "holdfast_dsm_checkpoint_response_seconds",
            "From a checkpoint's command to its answer.",
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10),
            registry=self.registry,
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"holdfast_dsm_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"holdfast_dsm_{name}", text, registry=self.registry)
