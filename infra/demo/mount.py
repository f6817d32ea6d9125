"""An NBD export or a raw file, mounted on this host as root: nbdfuse, a loop device, ext4."""

from __future__ import annotations

import subprocess
from pathlib import Path

from infra.demo.machine import Source
from infra.demo.processes import Process, Processes, program, run, wait_until
from infra.demo.report import DemoFailed


class Mount:
    """A mounted disk. `leave` gives everything back and may be called twice."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        folder.mkdir(mode=0o711)
        self._processes = processes
        self.root = folder / "root"
        self._nbd = folder / "nbd"
        self._loop: str | None = None
        self._bridge: Process | None = None

    def enter(self, source: Source) -> Path:
        """Mount it; the folder where its root is. DemoFailed."""
        file = source.file if source.uri is None else self._nbd_file(source.uri)
        assert file is not None
        # Direct I/O: what the file system writes reaches the disk in that order, without a
        # second cache in between.
        made = run([program("losetup"), "--direct-io=on", "--find", "--show", file])
        self._loop = made.stdout.strip()
        self.root.mkdir()
        run([program("mount"), "-t", "ext4", self._loop, self.root])
        return self.root

    def _nbd_file(self, uri: str) -> Path:
        self._nbd.mkdir()
        self._bridge = self._processes.start("nbdfuse", [program("nbdfuse"), self._nbd, uri])
        bridge, file = self._bridge, self._nbd / "nbd"

        def is_there() -> bool:
            bridge.require()
            return file.exists()

        wait_until("nbdfuse shows the disk", 15, is_there)
        return file

    def leave(self) -> None:
        """Unmount, free the loop device, end nbdfuse."""
        if _is_mounted(self.root):
            _unmount(self.root)
        if self._loop is not None:
            run([program("losetup"), "--detach", self._loop], allowed=(0, 1))
            loop, self._loop = self._loop, None
            wait_until(f"{loop} is free", 10, lambda: not _is_bound(loop))
        if _is_mounted(self._nbd):
            _unmount(self._nbd)
        if self._bridge is not None:
            self._bridge.stop()


def _unmount(folder: Path) -> None:
    umount = program("umount")
    try:
        run([umount, folder], seconds=30)
    except DemoFailed:
        # What is behind it may be gone; it must not stay in the way of others.
        subprocess.run([umount, "--lazy", "--force", folder], capture_output=True, check=False)


def _is_mounted(folder: Path) -> bool:
    # Read from the kernel: asking the folder itself fails where the process behind it is gone.
    escaped = str(folder).replace(" ", "\\040")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split(" ")[1] == escaped for line in mounts)


def _is_bound(loop: str) -> bool:
    return Path(f"/sys/block/{Path(loop).name}/loop").exists()
