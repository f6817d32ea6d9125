"""Feeds an analyser from a stream's batches: each record once, whatever is sent again."""

from __future__ import annotations

import threading

from host_agent.analyser.analyser import Analyser
from host_agent.wire.record import Records


class Watcher:
    """Called beside the loop by one stream at a time; asked for its report by the loop."""

    def __init__(self) -> None:
        self._analyser = Analyser()
        self._seen = 0
        self._lock = threading.Lock()

    def __call__(self, records: Records, payload: bytes) -> None:
        """A batch of consecutive records and their payloads in order."""
        first, last = int(records[0]["seq"]), int(records[-1]["seq"])
        with self._lock:
            if first == 1:
                self._seen = 0
            if last > self._seen:
                # A batch that repeats a part is taken whole: its samples count twice at most.
                self._seen = last
                self._analyser.feed(records, payload)

    def report(self) -> dict[int, dict[str, object]]:
        """What is known of each disk, by its number in the stream."""
        with self._lock:
            return self._analyser.report()
