"""Running machines for tests: a storage daemon, written to through an export of its own."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from host_agent.control import client
from infra.demo.processes import Process, Processes, json_output, program, wait_until
from infra.demo.report import DemoFailed
from tests.integration.nbd import NbdClient
from tests.integration.place import Place
from tests.integration.site import GROUP

MIB = 1 << 20
DISK, NODE = "vda", "disk0"
_ANSWER_SECONDS = 10.0


class Daemon:
    """A qemu-storage-daemon: QMP, a raw disk as node `disk0`, and an export to write to it."""

    def __init__(self, processes: Processes, folder: Path, disk: Path) -> None:
        self.disk = disk
        self.qmp, self.other_qmp = folder / "qmp", folder / "qmp2"
        self.nbd = folder / "guest.nbd"
        self._processes = processes
        self.process: Process | None = None

    def start(self) -> None:
        """Run it until it answers."""
        places = (self.qmp, self.other_qmp, self.nbd)
        for path in places:
            path.unlink(missing_ok=True)
        argv: list[str | Path] = [
            *(program("qemu-storage-daemon"), "--blockdev"),
            f"driver=file,node-name=file0,filename={self.disk},discard=unmap",
            *("--blockdev", f"driver=raw,node-name={NODE},file=file0,discard=unmap"),
            *("--chardev", f"socket,id=q,path={self.qmp},server=on,wait=off"),
            *("--monitor", "chardev=q"),
            *("--chardev", f"socket,id=q2,path={self.other_qmp},server=on,wait=off"),
            *("--monitor", "chardev=q2"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.nbd}"),
            *("--export", f"type=nbd,id=guest,node-name={NODE},name=guest,writable=on"),
        ]
        self.process = self._processes.start("qsd", argv)
        wait_until(
            "the storage daemon listens", 20, lambda: self.nbd.exists() and self.qmp.exists()
        )

    def write(self) -> NbdClient:
        """A connection of a machine that uses the disk."""
        return NbdClient(f"nbd+unix:///guest?socket={self.nbd}")

    def kill(self) -> None:
        """What the kernel does when it is out of memory."""
        assert self.process is not None
        self.process.popen.kill()
        self.process.end(10)


class Commands:
    """A QMP client of a test's own, for machines that no agent has a connection to."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_ANSWER_SECONDS)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """A command and what it returns."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise DemoFailed(str(answer["error"]))

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


def attach(place: Place, qmp: Path, node: str = NODE) -> dict[str, Any]:
    """`holdfast-agent attach --qmp`."""
    words: list[str | Path] = ["attach", GROUP, DISK, "--qmp", qmp, "--node", node, "--json"]
    return json_output(place.site.agent_command(*words))


def detach(place: Place, *options: str) -> None:
    """`holdfast-agent detach`."""
    json_output(place.site.agent_command("detach", GROUP, DISK, "--json", *options))


def group(place: Place) -> dict[str, Any]:
    """What the agent says of the group, asked without a process for each question."""
    answer = client.ask(place.site.setup.path("agent") / "agent.sock", {"do": "status"})
    found = next(one for one in answer["groups"] if one["group"] == GROUP)
    return dict(found)


def mirror(place: Place) -> dict[str, Any]:
    """What the agent says of the mirror."""
    found = group(place)["mirrors"]
    assert len(found) == 1, found
    return dict(found[0])


def tap_disk(place: Place) -> dict[str, Any]:
    """What the tap counts for the disk."""
    found = group(place)["tap"]["disks"]
    assert len(found) == 1
    return dict(found[0])


def limit_syncs(place: Place, mbit: int) -> None:
    """Limit what a copy may have, megabits a second."""
    client.ask(
        place.site.setup.path("agent") / "agent.sock",
        {"do": "limit", "group": GROUP, "sync": mbit},
    )


def wait_health(place: Place, health: str, seconds: float = 60) -> dict[str, Any]:
    """Wait until the mirror is so; how it is then."""
    deadline = time.monotonic() + seconds
    while (now := mirror(place))["health"] != health:
        if time.monotonic() > deadline:
            raise DemoFailed(f"The mirror did not become {health} in {seconds:g} s: {now}")
        time.sleep(0.02)
    return now


def wait_protected(place: Place, seconds: float = 60) -> dict[str, Any]:
    """Wait until the mirror is confirmed and all is stored; the group's status."""
    deadline = time.monotonic() + seconds
    while True:
        now = group(place)
        is_mirrored = all(one["health"] == "mirrored" for one in now["mirrors"])
        if is_mirrored and now["state"] == "recording" and now["stored"] == now["head"]:
            return now
        if time.monotonic() > deadline:
            raise DemoFailed(f"The disk was not protected within {seconds:g} s: {now}")
        time.sleep(0.05)


def wait_copying(place: Place, at_least: int, seconds: float = 30) -> dict[str, Any]:
    """Wait until the initial sync has brought so many bytes and is not over; how it is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = mirror(place)
        if now["job"] is not None and now["job"]["done_bytes"] >= at_least:
            # On a busy machine the small ring may have been full in between.
            assert now["health"] != "mirrored", now
            return now
        time.sleep(0.05)
    raise DemoFailed(f"The sync did not come that far: {mirror(place)}")
