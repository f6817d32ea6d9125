"""Bringing moments back with the commands of `holdfast restore`: a bucket and one key file."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.demo.processes import Process, Processes, json_output, tool
from infra.demo.report import DemoFailed


@dataclass(frozen=True)
class Exported:
    """A raw image and what the command said about it."""

    image: Path
    said: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Served:
    """An export that is being served, and the process that serves it."""

    uri: str
    process: Process
    said: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Safe:
    """What is left after the loss: where the bucket is, and the tenant's key."""

    store: str
    key_file: Path
    processes: Processes
    tenant: str
    group: str

    def _command(self, verb: str, *words: str | Path) -> list[str | Path]:
        where = ("--store", self.store, "--tenant", self.tenant, "--key-file", self.key_file)
        return [tool("holdfast"), "restore", verb, *where, *words]

    def points(self) -> dict[str, Any]:
        """What can be chosen."""
        return json_output(self._command("list", "--group", self.group, "--json"))

    def export(self, selector: str, folder: Path) -> Exported:
        """Write the disk of that moment to a raw image; DemoFailed."""
        began = time.monotonic()
        where = ("--group", self.group, "--at", selector, "--output", folder, "--digest", "--json")
        said = json_output(self._command("export", *where), seconds=120)
        images = sorted(folder.rglob("*.raw"))
        if len(images) != 1:
            raise DemoFailed(f"The export wrote {len(images)} images instead of one.")
        return Exported(images[0], said, time.monotonic() - began)

    def serve(self, selector: str, folder: Path) -> Served:
        """Serve the disk of that moment over NBD at once; DemoFailed."""
        began = time.monotonic()
        folder.mkdir(mode=0o700)
        where = ("--group", self.group, "--at", selector, "--socket-dir", folder, "--json")
        process = self.processes.start("serve", self._command("serve", *where), pipes=True)
        assert process.popen.stdout is not None
        said = _first_object(process)
        return Served(_uri(said), process, said, time.monotonic() - began)


def _first_object(process: Process) -> dict[str, Any]:
    assert process.popen.stdout is not None
    line = process.popen.stdout.readline()
    if not line:
        process.end(5)
        raise DemoFailed(f"restore serve ended: {process.tail()}")
    content = json.loads(line)
    if not isinstance(content, dict):
        raise DemoFailed("restore serve printed JSON that is no object.")
    return content


def _uri(said: dict[str, Any]) -> str:
    if len(said["disks"]) != 1:
        raise DemoFailed(f"restore serve serves not one disk: {said}")
    return str(said["disks"][0]["uri"])


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> tuple[int, int, str]:
    """Files, bytes, and a SHA-256 over names and contents of all files below a folder."""
    whole = hashlib.sha256()
    count = size = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            whole.update(f"{path.relative_to(folder)}\0{len(data)}\0".encode())
            whole.update(data)
            count, size = count + 1, size + len(data)
    return count, size, whole.hexdigest()
