"""The tap's side of a recovered group, in a thread: asks for ranges, keeps what it is given, and
counts."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec

SECTOR = 512
_MESSAGE_BYTES = 65_536


class Refused(Exception):
    """The provider cannot bring a range."""


class TapDouble:
    """One group with some disks; sizes in bytes. What was never filled is `None` per sector."""

    def __init__(self, path: Path, disks: dict[str, int]) -> None:
        self.path = path
        self.sectors: dict[str, list[bytes | None]] = {
            name: [None] * (size // SECTOR) for name, size in disks.items()
        }
        self.fills = 0
        self.seals_tried: list[str] = []
        self.fill_error: str | None = None
        self._tickets: dict[int, list[Any]] = {}
        self._lock = threading.Lock()
        self._provided = threading.Event()
        self._peer: socket.socket | None = None
        self._window: mmap.mmap | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the connection, as a tap that stops does."""
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    # -- the guest's side

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """What a guest reads: asks for what is missing and waits; Refused."""
        assert self._provided.wait(5)
        sectors = self.sectors.get(disk, [])[offset // SECTOR : (offset + length) // SECTOR]
        if sectors and len(sectors) * SECTOR == length and None not in sectors:
            return self.held(disk, offset, length)
        done = threading.Event()
        with self._lock:
            ticket = len(self._tickets) + 1
            self._tickets[ticket] = [done, None]
        need = {"event": "need", "ticket": ticket, "disk": disk, "offset": offset, "length": length}
        self._send(need)
        assert done.wait(20), "the provider did not answer"
        if self._tickets[ticket][1] is not None:
            raise Refused(self._tickets[ticket][1])
        return self.held(disk, offset, length)

    def held(self, disk: str, offset: int, length: int) -> bytes:
        """What is present; AssertionError if anything of it is not."""
        found = self.sectors[disk][offset // SECTOR : (offset + length) // SECTOR]
        assert all(sector is not None for sector in found), "served, but not filled"
        return b"".join(sector for sector in found if sector is not None)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """A guest's write: a later fill must not cover it."""
        for at in range(0, len(data), SECTOR):
            self.sectors[disk][(offset + at) // SECTOR] = data[at : at + SECTOR]

    def missing(self, disk: str) -> int:
        """Sectors that are not there yet."""
        return sum(sector is None for sector in self.sectors[disk])

    # -- the protocol

    def _send(self, message: dict[str, Any]) -> None:
        assert self._peer is not None
        self._peer.send(msgspec.json.encode(message))

    def _run(self) -> None:
        # Either side may go first.
        with contextlib.suppress(OSError):
            self._peer, _ = self._listener.accept()
            self._serve(self._peer)

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            while True:
                data, ancillary, _, _ = peer.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(16))
                if not data:
                    return
                message = msgspec.json.decode(data)
                fds = array.array("i")
                for _, _, raw in ancillary:
                    fds.frombytes(raw)
                answer = self._do(message, list(fds))
                self._send({"id": message["id"], **answer})

    def _do(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        verb = message["do"]
        if verb == "provide":
            self._window = mmap.mmap(fds[0], message["window_bytes"], prot=mmap.PROT_READ)
            self._try_to_shorten(fds[0])
            self._provided.set()
        elif verb == "fill":
            return self._fill(message)
        elif verb in ("served", "refuse"):
            done = self._tickets[message["ticket"]]
            done[1] = message.get("message")
            done[0].set()
        elif verb == "missing":
            return {"ok": True, **self._missing(message["disk"], message["from"])}
        return {"ok": True}

    def _try_to_shorten(self, fd: int) -> None:
        try:
            os.ftruncate(fd, 0)
        except OSError as error:
            self.seals_tried.append(type(error).__name__)

    def _fill(self, message: dict[str, Any]) -> dict[str, Any]:
        self.fills += 1
        if self.fill_error is not None:
            return {"ok": False, "error": self.fill_error, "message": "The disk is full."}
        disk = self.sectors[message["disk"]]
        first, count = message["offset"] // SECTOR, message["length"] // SECTOR
        assert message["offset"] % SECTOR == message["length"] % SECTOR == 0
        assert first + count <= len(disk)
        assert self._window is not None
        for index in range(count):
            if disk[first + index] is None:
                at = message["at"]
                data = bytes(SECTOR) if at is None else self._sector(at + index * SECTOR)
                disk[first + index] = data
        return {"ok": True}

    def _sector(self, at: int) -> bytes:
        assert self._window is not None
        return bytes(self._window[at : at + SECTOR])

    def _missing(self, name: str, start: int) -> dict[str, int]:
        disk = self.sectors[name]
        for first in range(start // SECTOR, len(disk)):
            if disk[first] is None:
                end = first
                while end < len(disk) and disk[end] is None:
                    end += 1
                return {"offset": first * SECTOR, "length": (end - first) * SECTOR}
        return {"offset": 0, "length": 0}
