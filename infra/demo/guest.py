"""Runs the machine as a guest under QEMU's emulation: any user can, and nothing is mounted here."""

from __future__ import annotations

import queue
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from infra.demo.machine import FILES, Source
from infra.demo.processes import Process, Processes, program, run
from infra.demo.report import DemoFailed

REPOSITORY = Path(__file__).parents[2]
_DRIVERS = ("virtio_pci", "virtio_blk", "ext4")
_BOOT_SECONDS = 90.0


def fetch_kernel() -> Path:
    """The folder of the test guest's kernel, unpacked if it is not there yet; DemoFailed."""
    done = run([REPOSITORY / "infra/fetch-guest-kernel"], seconds=600)
    return Path(done.stdout.strip().splitlines()[-1])


def insertion_order(modules: Path) -> list[Path]:
    """The files of the drivers that a guest needs, each after those that it depends on."""
    depends: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        depends[name] = others.split()
    order: list[str] = []
    for driver in _DRIVERS:
        for name, needed in depends.items():
            if Path(name).name.split(".")[0] == driver:
                # The list names the nearest first; what it rests on must be there before.
                order += [one for one in [*reversed(needed), name] if one not in order]
    return [modules / name for name in order]


def make_initrd(kernel: Path, initrd: Path) -> None:
    """The guest's first user space: busybox, drivers, and the script that mounts the disk."""
    tree = initrd.with_suffix(".tree")
    for name in ("bin", "modules", "proc", "dev", "disk"):
        (tree / name).mkdir(parents=True)
    shutil.copy(program("busybox", "Install busybox-static."), tree / "bin/busybox")
    shutil.copy(FILES / "first.sh", tree / "init")
    (tree / "init").chmod(0o755)
    files = insertion_order(kernel / "modules")
    for file in files:
        shutil.copy(file, tree / "modules" / file.name)
    (tree / "modules/order").write_text("".join(f"{file.name}\n" for file in files))
    pack = 'cd "$1" && find . | cpio --quiet -o -H newc | gzip -1 >"$2"'
    try:
        run(["/bin/sh", "-c", pack, "pack", tree, initrd])
    finally:
        shutil.rmtree(tree)


class Guest:
    """One QEMU process; its serial line carries commands in and lines out."""

    way = "guest"

    def __init__(self, processes: Processes, kernel: Path, initrd: Path) -> None:
        self._processes = processes
        self._kernel = kernel
        self._initrd = initrd
        self._qemu: Process | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._on_line: Callable[[str], object] = lambda _line: None

    def start(self, source: Source) -> None:
        self._boot(source)
        self._await("up", _BOOT_SECONDS)

    def _boot(self, source: Source) -> None:
        # The format is named: a guest could write an image format's header into its raw disk.
        drive = "format=raw,if=virtio,cache=none,file="
        argv: list[str | Path] = [
            *(program("qemu-system-x86_64"), "-accel", "tcg", "-m", "256", "-nodefaults"),
            *("-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
            *("-kernel", self._kernel / "vmlinuz", "-initrd", self._initrd),
            *("-append", "console=ttyS0 quiet loglevel=1 panic=-1"),
            *("-drive", drive + (source.uri or str(source.file))),
        ]
        self._qemu = self._processes.start("guest", argv, pipes=True)
        threading.Thread(target=self._read, args=(self._qemu,), daemon=True).start()

    def _read(self, qemu: Process) -> None:
        assert qemu.popen.stdout is not None
        try:
            for data in qemu.popen.stdout:
                line = data.decode(errors="replace").strip("\r\n")
                if line.startswith("committed "):
                    self._on_line(line)
                else:
                    self._lines.put(line)
        except ValueError:
            return  # closed by whoever stopped the guest
        finally:
            self._lines.put("@@ gone")

    def _await(self, word: str | None, seconds: float) -> tuple[str, list[str]]:
        """Lines up to the next "@@ WORD"; DemoFailed at any other word, or after `seconds`."""
        said: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                shown = " / ".join(said[-5:])
                raise DemoFailed(f"The guest said nothing for {seconds:.0f} s: {shown}") from None
            if not line.startswith("@@ "):
                said.append(line)
                continue
            found = line[3:]
            if found == "gone" or (word is not None and found != word):
                shown = " / ".join(said[-10:])
                raise DemoFailed(f"The guest ended or answered {found!r}: {shown}")
            return found, said

    def _send(self, command: str) -> None:
        assert self._qemu is not None
        assert self._qemu.popen.stdin is not None
        try:
            self._qemu.popen.stdin.write(command.encode() + b"\n")
            self._qemu.popen.stdin.flush()
        except OSError:
            raise DemoFailed("The guest is gone.") from None

    def ask(self, command: str, seconds: float = 180) -> tuple[int, list[str]]:
        self._send(command)
        found, said = self._await(None, seconds)
        return int(found), said

    def work(self, first: int, on_line: Callable[[str], object]) -> None:
        self._on_line = on_line
        self.ask(f"work {first}")

    def stop(self) -> None:
        code, said = self.ask("stop")
        if code != 0:
            raise DemoFailed(f"The database did not stop in order: {' '.join(said)}")
        self._send("off")
        assert self._qemu is not None
        self._qemu.end(30)

    def lose(self) -> None:
        if self._qemu is not None:
            self._qemu.stop(signal.SIGKILL)
