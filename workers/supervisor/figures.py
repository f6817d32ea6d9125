"""A data node's figures for Prometheus, from what it says of itself. No tenant's name is in any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_STREAM_SUMS = ("bytes_in", "bytes_stored", "bytes_dropped", "frames_in", "segments")


class _Node:
    """A collector: asked anew for each scrape."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        services = status["services"]
        streams = [s for one in services for s in one["status"].get("streams", ())]
        yield _gauge("tenants", "Tenants that are served.", status["tenants"])
        yield _gauge("services", "Processes of tenants.", len(services))
        yield _gauge("streams_connected", "Streams.", sum(one["connected"] for one in streams))
        held = sum(one["bytes_held"] for one in streams)
        yield _gauge("bytes_held", "Received, and neither stored nor dropped.", held)
        yield _gauge("warnings", "What somebody should look at.", len(status["warnings"]))
        restarts = sum(one.get("restarts", 0) for one in (status["router"], *services))
        yield _counter("restarts", "Processes that died.", restarts)
        for name in _STREAM_SUMS:
            found = sum(one[name] for one in streams)
            yield _counter(f"stream_{name}", "Of the streams' sessions.", found)
        walls = GaugeMetricFamily(
            "holdfast_datanode_tenants_by_wall", "What keeps journals apart.", labels=["wall"]
        )
        for wall, count in status["walls"].items():
            walls.add_metric([wall], count)
        yield walls
        yield _connections(status)


def _connections(status: Mapping[str, Any]) -> Metric:
    family = CounterMetricFamily(
        "holdfast_datanode_connections", "Connections by what became of them.", labels=["outcome"]
    )
    for name, count in status["router"].items():
        if name in ("passed", "refused_full", "refused_name", "refused_slow"):
            family.add_metric([name], count)
    for why, count in status["refused"].items():
        family.add_metric([f"refused_{why}"], count)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"holdfast_datanode_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"holdfast_datanode_{name}", text, value=value)


def figures_of(status: Callable[[], Mapping[str, Any]]) -> Callable[[], bytes]:
    """What a scrape is answered."""
    registry = CollectorRegistry()
    registry.register(_Node(status))
    return lambda: generate_latest(registry)
