"""A real tap in folders of its own, and the two control sockets as plain clients."""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host_agent.wire import tapctl
from tests.tap.opened import track

ROOT = Path(__file__).resolve().parents[2]
TAP_FOLDER = ROOT / "host_agent" / "tap"
#: Another build may be named, for example an older version.
ELSEWHERE = os.environ.get("HOLDFAST_TAP")
BINARY = Path(ELSEWHERE or TAP_FOLDER / "target" / "release" / "holdfast-tap")
MEMORY = Path("/dev/shm")
RING_BYTES = 8 << 20
_SECONDS = 20.0

Fields = dict[str, Any]


def build() -> None:
    """Compile the tap unless the newest sources are compiled already."""
    if ELSEWHERE:
        return
    sources = [*TAP_FOLDER.glob("src/**/*.rs"), *TAP_FOLDER.glob("Cargo.*")]
    newest = max(path.stat().st_mtime for path in sources)
    if BINARY.exists() and BINARY.stat().st_mtime >= newest:
        return
    subprocess.run(
        [ROOT / "infra" / "cargo", "build", "--release", "--locked", "--quiet"],
        cwd=TAP_FOLDER,
        check=True,
    )


_LIBC = ctypes.CDLL(None)
_SET_PARENT_DEATH_SIGNAL = 1


def _end_with_parent() -> None:
    """A test process that is killed leaves no tap behind."""
    _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


class Channel:
    """A SEQPACKET connection to the tap. Requests may overlap; answers are kept until asked for."""

    def __init__(self, path: Path) -> None:
        self.socket = track(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.socket.settimeout(_SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._next = 1
        self._answers: dict[int, tuple[Fields, int | None]] = {}
        self.events: list[Fields] = []

    def send(self, verb: str, **fields: object) -> int:
        """Ask; the request's number."""
        number, self._next = self._next, self._next + 1
        self.socket.send(tapctl.request(number, verb, **fields))
        return number

    def send_with(self, descriptor: int, verb: str, **fields: object) -> int:
        """Ask, and hand a descriptor over."""
        number, self._next = self._next, self._next + 1
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        self.socket.sendmsg([tapctl.request(number, verb, **fields)], [rights])
        return number

    def receive(self) -> None:
        """Take one message, whatever it is; ConnectionError if the tap closed the socket."""
        data, rights, _, _ = self.socket.recvmsg(65_536, socket.CMSG_SPACE(4))
        if not data:
            raise ConnectionError("the tap closed the control connection")
        message = json.loads(data)
        descriptor = None
        for _, _, raw in rights:
            descriptor = array.array("i", raw[:4])[0]
        if "event" in message:
            self.events.append(message)
        else:
            self._answers[message["id"]] = message, descriptor

    def answer(self, number: int) -> tuple[Fields, int | None]:
        """The answer to a request; TapRefused if it is a refusal."""
        while number not in self._answers:
            self.receive()
        message, descriptor = self._answers.pop(number)
        return tapctl.answer(message), descriptor

    def call(self, verb: str, **fields: object) -> Fields:
        """Ask and wait for the answer."""
        message, descriptor = self.answer(self.send(verb, **fields))
        if descriptor is not None:
            os.close(descriptor)
        return message

    def next_event(self) -> Fields:
        """The oldest event that was not taken yet."""
        while not self.events:
            self.receive()
        return self.events.pop(0)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


@dataclass(frozen=True)
class Attached:
    """An attached disk. `size` in bytes."""

    group: str
    disk: str
    path: Path
    uri: str
    nbd_socket: Path
    stream_socket: Path
    size: int
    number: int


class Tap:
    """A tap process. Its run folder is in memory, as it is in production."""

    def __init__(self, folder: Path, *, engine: str | None = None, failpoints: bool = True) -> None:
        self.run_dir, self.state_dir = folder / "run", folder / "state"
        self.ring_dir = folder / "rings"
        self.ring_dir.mkdir(mode=0o700, exist_ok=True)
        self.log = folder / "tap.log"
        self.arguments: list[str | Path] = ["--run-dir", self.run_dir]
        self.arguments += ["--state-dir", self.state_dir, "--ring-dir", self.ring_dir]
        if engine:
            self.arguments += ["--engine", engine]
        if failpoints:
            self.arguments.append("--failpoints")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Tap:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                channel = Channel(self.run_dir / "tap.sock")
                channel.call("hello", version=1)
                channel.close()
                return self
            if self.process.poll() is not None:
                raise RuntimeError(f"the tap ended: {self.log.read_text()}")
            time.sleep(0.005)
        raise TimeoutError(f"the tap does not answer: {self.log.read_text()}")

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    def control(self) -> Channel:
        """A connection to tap.sock."""
        return Channel(self.run_dir / "tap.sock")

    def call(self, verb: str, **fields: object) -> Fields:
        """One request to tap.sock."""
        channel = self.control()
        try:
            return channel.call(verb, **fields)
        finally:
            channel.close()

    def attach(self, path: Path, group: str = "g", disk: str = "d", **options: object) -> Attached:
        """Attach a disk; `options` override what is asked for."""
        wanted = {"cache": "auto", "ring_bytes": RING_BYTES, "hold_ms_max": 200, **options}
        answer = self.call("attach", group=group, disk=disk, path=str(path), **wanted)
        return Attached(
            group,
            disk,
            path,
            answer["uri"],
            Path(answer["nbd_socket"]),
            Path(answer["stream_socket"]),
            answer["size"],
            answer["number"],
        )

    def group(self, name: str = "g") -> Fields:
        """What `status` says of a group."""
        found: Fields = next(g for g in self.call("status")["groups"] if g["group"] == name)
        return found

    def stop(self) -> None:
        """Orderly, and wait for the end."""
        assert self.process is not None
        with contextlib.suppress(ConnectionError):
            self.call("stop")
        assert self.process.wait(_SECONDS) == 0, self.log.read_text()
        self.process = None

    def kill(self) -> None:
        """Without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(_SECONDS)
        self.process = None

    def pause(self) -> None:
        """Stop the process's clock."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path("/proc") / str(self.pid) / "stat"
        while stat.read_text().rsplit(")")[-1].split()[0] != "T":
            time.sleep(0.001)

    def go_on(self) -> None:
        """Let it run again."""
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """At the end of a test, however it went."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(_SECONDS)


class Stream:
    """The agent's side of GROUP.stream: the ring, mapped, and the verbs."""

    def __init__(self, path: Path) -> None:
        self.channel = Channel(path)
        self.opened, descriptor = self.channel.answer(self.channel.send("open"))
        assert descriptor is not None
        self.descriptor = descriptor
        self.map = mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)

    def call(self, verb: str, **fields: object) -> Fields:
        """One request."""
        return self.channel.call(verb, **fields)

    def state(self) -> Fields:
        """As the tap states it now."""
        return self.call("state")

    def close(self) -> None:
        """Hang up. The mapping goes with its last user."""
        self.channel.close()
        os.close(self.descriptor)


@contextlib.contextmanager
def folder_in(parent: Path) -> Iterator[Path]:
    """A folder with a short path, for sockets, that is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="hf-", dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
