"""A protected disk with everything around it, as real processes in a folder of its own."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.demo.processes import Process, Processes
from infra.demo.recovery import Safe
from infra.demo.report import DemoFailed
from tests.integration.site import Site

MIB = 1 << 20


@dataclass
class Place:
    """One site, its bucket, and what is needed after its loss."""

    folder: Path
    processes: Processes
    site: Site
    safe: Safe
    bucket: Path
    uri: str = ""

    @property
    def disk(self) -> Path:
        """The source's backing file."""
        return self.site.disk

    def protect(self, env: dict[str, str] | None = None) -> str:
        """Start everything and wait until the disk is protected; its NBD URI."""
        self.site.start_ingest(env)
        self.site.start_host()
        self.uri = self.site.attach()
        self.site.wait_protected(lambda _now: None)
        return self.uri

    def head(self) -> int:
        """The newest recorded sequence."""
        return int(self.site.status()["head"])

    def drain(self, seconds: float = 120) -> dict[str, Any]:
        """Wait until all that is recorded is stored and the stream records; then its status."""
        deadline = time.monotonic() + seconds
        now: dict[str, Any] = {}
        while time.monotonic() < deadline:
            now = self.site.status()
            if now["state"] == "recording" and now["stored"] == now["head"]:
                return now
            time.sleep(0.1)
        raise DemoFailed(f"not everything was stored within {seconds:.0f} s: {now}")

    def kill(self, process: Process | None) -> None:
        """What the kernel does when it is out of memory."""
        assert process is not None
        process.stop(signal.SIGKILL)

    def lose(self) -> bytes:
        """End and remove everything but the bucket and the tenant's key; the disk's last bytes."""
        source = self.disk.read_bytes()
        self.site.stop()
        self.site.delete()
        return source

    def export(self, selector: str, name: str = "exported") -> bytes:
        """The disk of that moment, through `holdfast restore export`."""
        folder = self.folder / name
        try:
            return self.safe.export(selector, folder).image.read_bytes()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def made_place(
    folder: Path, disk_bytes: int = 64 * MIB, store: str | None = None
) -> Iterator[Place]:
    """A place with an empty disk. Nothing runs before `protect`, nothing after the block."""
    logs, bucket, disk = folder / "logs", folder / "bucket", folder / "disk.raw"
    logs.mkdir()
    bucket.mkdir()
    with disk.open("xb") as file:
        file.truncate(disk_bytes)
    processes = Processes(logs)
    url = store or f"file://{bucket}"
    site = Site(processes, folder / "site", url, disk)
    key = folder / "tenant.key"
    shutil.copy(site.setup.path("tenant.key"), key)
    safe = Safe(url, key, processes, site.setup.tenant, site.setup.group)
    try:
        yield Place(folder, processes, site, safe, bucket)
    finally:
        processes.stop_all()
        site.drop_rings()
