"""A small disk that is written all the while: numbered pages, so that anyone can say what must be
on it. A machine without a file system, for the disks beside the database's."""

from __future__ import annotations

import threading
from pathlib import Path

from infra.demo.processes import Process, Processes, program
from infra.demo.report import DemoFailed

DISK_BYTES = 4 << 20
_PAGE = 4096
#: Pages go around in the front of the disk, so that old ones are written over.
_SLOTS = 64
_PAUSE_SECONDS = 0.02


def page(secret: str, number: int) -> bytes:
    """What page `number` (from 1) holds."""
    line = f"{number} {secret}\n".encode()
    return (line * (_PAGE // len(line) + 1))[:_PAGE]


def disk_after(secret: str, last: int) -> bytes:
    """The whole disk once the pages 1 to `last` were written."""
    slots = [bytes(_PAGE)] * _SLOTS
    for number in range(max(1, last - _SLOTS + 1), last + 1):
        slots[(number - 1) % _SLOTS] = page(secret, number)
    return b"".join(slots).ljust(DISK_BYTES, b"\0")


def last_page(secret: str, disk: bytes) -> int | None:
    """The number of the page after which the disk was so; None if it never was."""
    firsts = (disk[at : at + 32].split(b" ", 1)[0] for at in range(0, _SLOTS * _PAGE, _PAGE))
    last = max((int(first) for first in firsts if first.isdigit()), default=0)
    return last if disk == disk_after(secret, last) else None


class Notebook:
    """Writes pages to an NBD export, one at a time, until it is told to stop."""

    def __init__(self, processes: Processes, folder: Path, secret: str) -> None:
        self.secret = secret
        #: The newest page that was acknowledged.
        self.last = 0
        self._processes = processes
        self._page = folder / "page"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._writer: Process | None = None
        self._failure = ""

    def start(self, uri: str) -> None:
        """Begin."""
        argv = [program("qemu-io"), "--format", "raw", uri]
        self._writer = self._processes.start("notebook", argv, pipes=True)
        self._thread.start()

    def _write(self) -> None:
        assert self._writer is not None
        popen = self._writer.popen
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            while not self._stopping.wait(_PAUSE_SECONDS):
                number = self.last + 1
                self._page.write_bytes(page(self.secret, number))
                at = (number - 1) % _SLOTS * _PAGE
                popen.stdin.write(f"write -s {self._page} {at} {_PAGE}\n".encode())
                popen.stdin.flush()
                line = popen.stdout.readline()
                while line and b" ops; " not in line:
                    if b"failed" in line or b"rror" in line:
                        raise OSError(line.decode(errors="replace"))
                    line = popen.stdout.readline()
                if not line:
                    raise OSError(f"the writer ended: {self._writer.tail()}")
                self.last = number
        except (OSError, ValueError) as error:
            self._failure = str(error)

    def require(self) -> None:
        """DemoFailed if it could not go on writing."""
        if self._failure:
            raise DemoFailed(f"A machine's disk could not be written: {self._failure}")

    def stop(self) -> None:
        """Stop writing. May be called twice."""
        self._stopping.set()
        if self._writer is not None:
            self._thread.join(10)
            self._writer.stop()
