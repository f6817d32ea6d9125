"""The servers that ours is compared with: as ordinary users run them, none pinned to a core."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.processes import BenchFailed, Process, program

_JOB_SECONDS_MAX = 120.0


def unix_uri(path: Path, export: str = "") -> str:
    """The NBD URI of an export on a Unix socket."""
    return f"nbd+unix:///{export}?socket={path}"


@contextmanager
def qemu_nbd(directory: Path, disk: Path, *options: str) -> Iterator[str]:
    """qemu-nbd on a raw file; its URI."""
    path = directory / f"{disk.stem}.sock"
    command: list[str | Path] = [
        program("qemu-nbd"),
        "--format=raw",
        "--persistent",
        "--shared=8",
        f"--socket={path}",
        *options,
        disk,
    ]
    with Process(f"qemu-nbd-{disk.stem}", command, directory) as process:
        process.wait_for(path)
        yield unix_uri(path)


@contextmanager
def nbdkit_file(directory: Path, disk: Path) -> Iterator[str]:
    """nbdkit's file plugin on a raw file; its URI."""
    path = directory / f"{disk.stem}.sock"
    command: list[str | Path] = [program("nbdkit"), "--foreground", "--exit-with-parent"]
    command += ["--unix", path, "file", disk]
    with Process(f"nbdkit-{disk.stem}", command, directory) as process:
        process.wait_for(path)
        yield unix_uri(path)


class Qmp:
    """The few words of QEMU's monitor that a mirror needs."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_JOB_SECONDS_MAX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """The command's return value; BenchFailed with QEMU's reason."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise BenchFailed(f"QEMU refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        """End the conversation."""
        self._file.close()
        self._socket.close()


@dataclass(frozen=True)
class Mirror:
    """QEMU's own continuous copy: the storage daemon, and the server that it copies to."""

    uri: str
    qmp: Qmp
    pids: tuple[int, int]

    def job_state(self) -> str:
        """`ready` while the copy is complete and follows each write."""
        jobs = self.qmp.execute("query-jobs")
        return str(jobs[0]["status"]) if jobs else "gone"

    def wait_until_ready(self) -> None:
        """Until the first copy is complete."""
        deadline = time.monotonic() + _JOB_SECONDS_MAX
        while self.job_state() != "ready":
            if time.monotonic() > deadline:
                raise BenchFailed("QEMU's mirror did not become ready.")
            time.sleep(0.1)


def _daemon_command(directory: Path, source: Path, target: Path) -> list[str | Path]:
    target_node = "driver=nbd,node-name=target,export=target,server.type=unix"
    return [
        program("qemu-storage-daemon"),
        "--chardev",
        f"socket,id=monitor,path={directory}/qmp.sock,server=on,wait=off",
        "--monitor",
        "chardev=monitor",
        "--blockdev",
        f"driver=file,node-name=file,filename={source}",
        "--blockdev",
        "driver=raw,node-name=source,file=file",
        "--blockdev",
        f"{target_node},server.path={target}",
        "--nbd-server",
        f"addr.type=unix,addr.path={directory}/source.sock",
        "--export",
        "type=nbd,id=export,node-name=source,name=source,writable=on",
    ]


@contextmanager
def qemu_mirror(directory: Path, source: Path, target: Path) -> Iterator[Mirror]:
    """A disk that QEMU serves and copies, each write to both before it is answered."""
    target_socket = directory / "target.sock"
    serve = [program("qemu-nbd"), "--format=raw", "--persistent", "--shared=8"]
    serve += ["--export-name=target", f"--socket={target_socket}", str(target)]
    with ExitStack() as stack:
        server = stack.enter_context(Process("mirror-target", serve, directory))
        server.wait_for(target_socket)
        command = _daemon_command(directory, source, target_socket)
        daemon = stack.enter_context(Process("mirror-daemon", command, directory))
        daemon.wait_for(directory / "qmp.sock")
        daemon.wait_for(directory / "source.sock")
        qmp = Qmp(directory / "qmp.sock")
        stack.callback(qmp.close)
        uri = unix_uri(directory / "source.sock", "source")
        mirror = Mirror(uri, qmp, (daemon.pid, server.pid))
        options = {"job-id": "mirror", "sync": "full", "copy-mode": "write-blocking"}
        qmp.execute("blockdev-mirror", device="source", target="target", **options)
        mirror.wait_until_ready()
        yield mirror
