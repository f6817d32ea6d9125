"""A FakeTap behind the tap's real sockets, so that a real agent process can be given any tap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from host_agent.wire.tapctl import TapRefused
from tests.stream.fake_tap import FakeTap, TapConnection

Fields = dict[str, Any]


@dataclass
class TapServer:
    """Serves `tap.sock`, and `GROUP.stream` of each attached group."""

    run_dir: Path
    tap: FakeTap
    group: str = "demo"
    pid: int = 4711
    attached: list[Fields] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _opener: socket.socket | None = None

    async def start(self) -> None:
        self.run_dir.mkdir(exist_ok=True)
        self._listen("tap.sock", self._host)

    def _listen(self, name: str, serve: Any) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = self.run_dir / name
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(16)
        listener.setblocking(False)
        self._spawn(self._accept(listener, serve))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, serve: Any) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                sock, _ = await loop.sock_accept(listener)
                self._spawn(self._converse(sock, serve))

    async def _converse(self, sock: socket.socket, serve: Any) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            while data := await loop.sock_recv(sock, 1 << 17):
                self._spawn(self._answer(sock, json.loads(data), serve))

    async def _answer(self, sock: socket.socket, request: Fields, serve: Any) -> None:
        self.verbs.append(request["do"])
        try:
            answer, descriptors = await serve(sock, request)
            answer = {"ok": True, **answer}
        except TapRefused as error:
            answer, descriptors = {"ok": False, "error": error.code, "message": error.message}, []
        data = json.dumps({"id": request["id"], **answer}).encode()
        with contextlib.suppress(OSError):  # who asked may have left
            socket.send_fds(sock, [data], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    async def _host(self, _sock: socket.socket, request: Fields) -> tuple[Fields, list[int]]:
        verb = request["do"]
        if verb == "hello":
            told = {"version": 1, "pid": self.pid, "build": "fake", "engine": "threads"}
            return {**told, "failpoints": False}, []
        if verb == "attach":
            if not self.attached:
                self._listen(f"{self.group}.stream", self._stream)
            self.attached.append({"name": request["disk"], "path": request["path"]})
            return self._attached(request["disk"]), []
        if verb == "detach":
            self.attached = [one for one in self.attached if one["name"] != request["disk"]]
            return {}, []
        disks = [{**one, "size": self.tap.disk_bytes} for one in self.attached]
        stream = str(self.run_dir / f"{self.group}.stream")
        group = {"group": self.group, "stream_socket": stream, "disks": disks}
        return {"groups": [group] if disks else []}, []

    def _attached(self, disk: str) -> Fields:
        path = self.run_dir / f"{self.group}.nbd"
        return {
            "uri": f"nbd+unix:///{self.group}%2F{disk}?socket={path}",
            "nbd_socket": str(path),
            "stream_socket": str(self.run_dir / f"{self.group}.stream"),
            "size": self.tap.disk_bytes,
            "number": 0,
        }

    async def _stream(self, sock: socket.socket, request: Fields) -> tuple[Fields, list[int]]:
        one, verb = TapConnection(self.tap), request["do"]
        if verb == "open":
            if self._opener is not None and self._opener is not sock:
                with contextlib.suppress(OSError):
                    self._opener.shutdown(socket.SHUT_RDWR)
            self._opener = sock
            opened = await one.open()
            answer = {key: getattr(opened, key) for key in vars(opened) if key != "descriptor"}
            return _plain(answer), [opened.descriptor]
        if verb in ("wait", "state"):
            state = await (
                one.wait(request["after"], request["ms"]) if verb == "wait" else one.state()
            )
            return _plain(vars(state)), []
        if verb == "free":
            await one.free(request["seq"], request["anchor"], bytes.fromhex(request["anchor_hash"]))
            return {}, []
        if verb == "sync":
            return _plain(vars(await one.sync(request["bytes"]))), []
        if verb == "mark":
            seq, time = await one.mark(request["body"])
            return {"seq": seq, "time": time}, []
        assert verb == "new_generation"
        return {"generation": (await one.new_generation(request["cause"])).hex()}, []

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _plain(fields: Fields) -> Fields:
    """As JSON has it: hexadecimal names, words for states."""
    plain = {
        key: value.hex() if isinstance(value, bytes) else value for key, value in fields.items()
    }
    plain["state"] = fields["state"].name.lower()
    return plain
