"""The worker's health door: in a thread of the process that talks to the broker."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.jobs.relay import TASK
from app.kit.health_door import HealthDoor
from app.kit.settings import host_and_port


class _Worker:
    """A collector over what Celery counts in this process."""

    def collect(self) -> list[Metric]:
        done = state.total_count.get(TASK, 0)
        return [
            CounterMetricFamily("holdfast_worker_jobs", "Jobs that were taken.", value=done),
            GaugeMetricFamily(
                "holdfast_worker_jobs_at_work", "Jobs.", value=len(state.active_requests)
            ),
        ]


class WorkerHealth:
    """Ready from when the broker's queue is read until the worker is told to stop."""

    def __init__(self) -> None:
        self._is_ready = False
        self._registry = CollectorRegistry()
        self._registry.register(_Worker())
        worker_ready.connect(self._begin, weak=False)
        worker_shutting_down.connect(self._end, weak=False)

    def _begin(self, **_: Any) -> None:
        self._is_ready = True

    def _end(self, **_: Any) -> None:
        self._is_ready = False

    async def is_ready(self) -> bool:
        """For the door."""
        return self._is_ready

    def serve(self, address: str) -> None:
        """Answer on this address from now on. Children of a fork do not."""
        threading.Thread(target=self._run, args=(address,), daemon=True, name="health").start()

    def _run(self, address: str) -> None:
        async def answer() -> None:
            door = HealthDoor(self.is_ready, lambda: generate_latest(self._registry))
            await door.start(*host_and_port(address))
            await asyncio.Event().wait()

        asyncio.run(answer())
