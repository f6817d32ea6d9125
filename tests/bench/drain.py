"""A process that takes a stream's records and throws them away: it waits, and gives back.

It stands for the cheapest agent there can be, so that the tap is measured by itself. It reads the
stream into *recording* first, prints `recording`, and from then on does nothing but `wait` and
`free`. It ends at SIGTERM and prints whether the stream left *recording* meanwhile.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from types import FrameType
from typing import Any

from tests.bench.control import Control

_GRID = 4096
_WAIT_MS = 50
#: So often, about, it gives back what came meanwhile: a fraction of any ring, and few messages.
_TURN_SECONDS = 0.004
_BATCH_MAX = 4096
_SYNC_BYTES = 16 * 1024 * 1024
#: The record hash is the agent's to compute; the tap only keeps it.
_NO_HASH = bytes(32).hex()


class _Stopped(Exception):
    pass


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


class Drainer:
    """One stream's taker."""

    def __init__(self, control: Control) -> None:
        self._control = control
        opened = control.call("open")
        self._freed: int = opened["freed"]
        self._state: Any = opened["state"]
        self.left_recording = 0

    def sync(self) -> None:
        """Until the stream is recording: what is to be read is read, and thrown away."""
        while self._state != "recording":
            answer = self._control.call("sync", bytes=_SYNC_BYTES)
            self._state = answer["state"]
            self.free(self._control.call("state")["head"])

    def free(self, head: int) -> None:
        """Give back all up to `head`."""
        if head > self._freed:
            anchor = head - head % _GRID
            self._control.call("free", seq=head, anchor=anchor, anchor_hash=_NO_HASH)
            self._freed = head

    def run(self) -> None:
        """Wait for about as much as came in the last turn, give it back; until stopped."""
        batch, before = 1, time.monotonic()
        while True:
            answer = self._control.call("wait", after=self._freed + batch, ms=_WAIT_MS)
            if answer["state"] != "recording":
                self.left_recording += 1
                self._state = answer["state"]
                self.sync()
            now = time.monotonic()
            came = answer["head"] - self._freed
            batch = min(_BATCH_MAX, max(1, round(came * _TURN_SECONDS / (now - before))))
            before = now
            self.free(answer["head"])


def main() -> int:
    """`drain SOCKET`: ends 0 at SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    drainer = Drainer(Control(sys.argv[1]))
    try:
        drainer.sync()
        print("recording", flush=True)
        drainer.run()
    except _Stopped:
        pass
    print(json.dumps({"left_recording": drainer.left_recording}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
