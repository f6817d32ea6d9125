"""Faults of a protected site that its machine must not notice: one at a time, each healed again."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

from infra.demo.processes import Process
from infra.demo.report import DemoFailed
from tests.integration.cut_line import Line
from tests.integration.place import Place
from tests.servers.faulty_s3 import Fault, FaultyS3


class FolderOfObjects(MutableMapping[str, bytes]):
    """An S3 bucket's objects as files, so that hours of them fit; laid out as a local store is."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise KeyError(name) from None

    def __setitem__(self, name: str, data: bytes) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}")
        fresh.write_bytes(data)
        fresh.replace(path)

    def __delitem__(self, name: str) -> None:
        (self._root / name).unlink()

    def __iter__(self) -> Iterator[str]:
        found = (path for path in self._root.rglob("*") if path.is_file())
        return (str(path.relative_to(self._root)) for path in found if path.name[0] != ".")

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Faults:
    """What can go wrong around a machine whose NBD client lives through it."""

    def __init__(self, place: Place, store: FaultyS3, rng: random.Random) -> None:
        self._place, self._store, self._rng = place, store, rng
        self.kinds: dict[str, Callable[[], None]] = {
            "agent killed": self._kill_agent,
            "ingest killed": self._kill_ingest,
            "agent stopped": lambda: self._stop(place.site.agent),
            "line silent": lambda: self._stop(place.site.ingest),
            "store busy": self._busy_store,
            "store's answers lost": self._lost_answers,
            "store slow": self._slow_store,
        }
        self.done: list[str] = []

    def cut(self, line: Line) -> None:
        """Add what a line does that breaks."""
        self.kinds["line cut"] = lambda: self._line(line, line.cut)
        self.kinds["line stalled"] = lambda: self._line(line, line.stall)

    def kill_tap(self) -> None:
        """Add the tap's death, for a machine whose client comes back."""
        self.kinds["tap killed"] = self._kill_tap

    def next(self) -> str:
        """Carry out one, each kind before any comes again, and heal it."""
        since = len(self.done) // len(self.kinds) * len(self.kinds)
        left = [kind for kind in self.kinds if kind not in self.done[since:]]
        kind = self._rng.choice(left)
        self.kinds[kind]()
        self.done.append(kind)
        return kind

    def _wait(self) -> None:
        time.sleep(self._rng.uniform(0.3, 2.5))

    def _kill_agent(self) -> None:
        self._place.kill(self._place.site.agent)
        self._wait()
        self._place.site.start_agent()

    def _kill_ingest(self) -> None:
        self._place.kill(self._place.site.ingest)
        self._wait()
        self._place.site.start_ingest()

    def _kill_tap(self) -> None:
        self._place.kill(self._place.site.tap)
        self._wait()
        self._place.site.start_tap()
        self._attach()

    def _attach(self, seconds: float = 60) -> None:
        """The dead tap's socket is still there while its successor starts."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._place.site.attach()
            except DemoFailed:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return

    def _line(self, line: Line, how: Callable[[], None]) -> None:
        how()
        try:
            self._wait()
        finally:
            line.heal()

    def _stop(self, process: Process | None) -> None:
        assert process is not None
        process.popen.send_signal(signal.SIGSTOP)
        try:
            self._wait()
        finally:
            process.popen.send_signal(signal.SIGCONT)

    def _busy_store(self) -> None:
        self._store.always = Fault.BUSY_503
        self._wait()
        self._store.always = None

    def _lost_answers(self) -> None:
        self._store.faults.extend([("PUT", Fault.LOST_ANSWER), ("PUT", Fault.LOST_REQUEST)])
        self._wait()

    def _slow_store(self) -> None:
        self._store.put_seconds = 0.7
        self._wait()
        self._store.put_seconds = 0.0


def give_credentials(place: Place) -> None:
    """Let the place's ingest use a service that asks for some."""
    path = place.site.setup.path("store.json")
    path.touch(0o600)
    path.write_text(json.dumps({"access_key_id": "any", "secret_access_key": "body"}))
    config = place.site.setup.path("ingest.toml")
    config.write_text(f'store_credentials_file = "{path}"\n{config.read_text()}')


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two large files are equal, without holding them."""
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(1 << 20), right.read(1 << 20)
            if a != b:
                return False
            if not a:
                return True


def remove(folder: Path) -> None:
    """Remove what a restore made."""
    shutil.rmtree(folder, ignore_errors=True)
