"""ext4 and XFS on a raw image or an NBD export: made, mounted, checked. As root."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.demo.processes import Processes, program, run, wait_until

KINDS = ("ext4", "xfs")
#: XFS wants 300 MiB at least.
DISK_BYTES = {"ext4": 32 << 20, "xfs": 304 << 20}
_OPTIONS = {"ext4": "rw", "xfs": "rw,nouuid"}


def make(kind: str, disk: Path) -> None:
    """An empty file system on a raw disk; DemoFailed."""
    words = {"ext4": ["-q", "-E", "lazy_itable_init=1"], "xfs": ["-q", "-K"]}
    run([program(f"mkfs.{kind}"), *words[kind], disk])


def check(kind: str, image: Path) -> None:
    """fsck without repairs, of a file system whose log was replayed; DemoFailed."""
    words = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n", "-f"]}
    name, *options = words[kind]
    run([program(name), *options, image])


@contextmanager
def mounted(kind: str, image: Path, folder: Path) -> Iterator[Path]:
    """A raw image, mounted; the log is replayed by that. DemoFailed."""
    folder.mkdir()
    try:
        run([program("mount"), "-t", kind, "-o", f"loop,{_OPTIONS[kind]}", image, folder])
        try:
            yield folder
        finally:
            run([program("umount"), folder], seconds=60)
    finally:
        folder.rmdir()


@contextmanager
def mounted_nbd(kind: str, uri: str, folder: Path, processes: Processes) -> Iterator[Path]:
    """An NBD export through nbdfuse and a loop device past the page cache, mounted; DemoFailed."""
    bridge, root = folder / "nbd", folder / "root"
    for path in (folder, bridge, root):
        path.mkdir()
    fuse = processes.start("nbdfuse", [program("nbdfuse"), bridge, uri])
    try:
        wait_until("nbdfuse shows the disk", 15, (bridge / "nbd").exists)
        made = run([program("losetup"), "--direct-io=on", "--find", "--show", bridge / "nbd"])
        loop = made.stdout.strip()
        try:
            run([program("mount"), "-t", kind, loop, root])
            try:
                yield root
            finally:
                run([program("umount"), root], seconds=60)
        finally:
            run([program("losetup"), "--detach", loop], allowed=(0, 1))
            busy = Path(f"/sys/block/{Path(loop).name}/loop")
            wait_until(f"{loop} is free", 10, lambda: not busy.exists())
    finally:
        run([program("umount"), bridge], seconds=30, allowed=(0, 1, 32))
        fuse.stop()
        shutil.rmtree(folder, ignore_errors=True)
