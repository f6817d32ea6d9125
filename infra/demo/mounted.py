"""Runs the machine on this host, as root: nbdfuse makes the export a file, loop makes it a disk."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from infra.demo.machine import Owner, Source
from infra.demo.processes import Process, Processes, program, run, wait_until
from infra.demo.report import DemoFailed


class Mounted:
    """A disk mounted through a loop device with direct I/O, its database a process here."""

    way = "mounted"

    def __init__(self, processes: Processes, owner: Owner, folder: Path) -> None:
        folder.mkdir(mode=0o711)
        self._processes = processes
        self._owner = owner
        self._folder = folder
        self._root = folder / "root"
        self._nbd = folder / "nbd"
        self._run = owner.give(folder / "run")
        self._loop: str | None = None
        self._bridge: Process | None = None
        self._server: Process | None = None
        self._workload: Process | None = None

    def start(self, source: Source) -> None:
        file = source.file
        if source.uri is not None:
            file = self._nbd_file(source.uri)
        assert file is not None
        # Direct I/O: what the file system writes reaches the disk in that order, without a
        # second cache in between.
        made = run([program("losetup"), "--direct-io=on", "--find", "--show", file])
        self._loop = made.stdout.strip()
        self._root.mkdir()
        run([program("mount"), "-t", "ext4", self._loop, self._root])
        self._server = self._processes.start(
            "database", self._command("serve"), env=self._environment()
        )

    def _nbd_file(self, uri: str) -> Path:
        self._nbd.mkdir()
        self._bridge = self._processes.start("nbdfuse", [program("nbdfuse"), self._nbd, uri])
        bridge, file = self._bridge, self._nbd / "nbd"

        def is_there() -> bool:
            bridge.require()
            return file.exists()

        wait_until("nbdfuse shows the disk", 15, is_there)
        return file

    def _environment(self) -> dict[str, str]:
        return {"ROOT": str(self._root), "RUN": str(self._run)}

    def _command(self, *words: str) -> list[str]:
        return self._owner.command("/bin/sh", self._root / "srv/ledger.sh", *words)

    def ask(self, command: str, seconds: float = 60) -> tuple[int, list[str]]:
        pairs = [f"{name}={value}" for name, value in self._environment().items()]
        argv = ["env", *pairs, *self._command(*command.split())]
        done = run(argv, seconds=seconds, allowed=range(256))
        return done.returncode, (done.stdout + done.stderr).splitlines()

    def work(self, first: int, on_line: Callable[[str], object]) -> None:
        self._workload = self._processes.start(
            "workload", self._command("work", str(first)), env=self._environment(), pipes=True
        )
        stdout = self._workload.popen.stdout
        assert stdout is not None

        def read() -> None:
            with contextlib.suppress(ValueError):
                for line in stdout:
                    on_line(line.decode(errors="replace").rstrip())

        threading.Thread(target=read, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None and self._server.is_running:
            code, said = self.ask("stop")
            if code != 0:
                raise DemoFailed(f"The database did not stop in order: {' '.join(said)}")
        self._leave()

    def lose(self) -> None:
        self._leave()

    def _leave(self) -> None:
        """Give everything back; may be called twice."""
        if self._server is not None:
            # Immediate: no orderly end, but its shared memory is given back.
            self._server.stop(signal.SIGQUIT)
        if self._workload is not None:
            self._workload.stop()
        if _is_mounted(self._root):
            _unmount(self._root)
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
