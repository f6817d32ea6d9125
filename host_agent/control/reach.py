"""What of this machine a manager may have protected: the inventory's folders and sockets alone."""

from __future__ import annotations

import stat
from pathlib import Path

from host_agent.control.errors import NotInInventory
from host_agent.control.host_settings import InventoryConfig
from host_agent.wire.control import PathSource, QmpSource


class Reach:
    """One tenant's. Asks the file system; nothing is remembered."""

    def __init__(self, inventory: InventoryConfig) -> None:
        self._inventory = inventory

    def check(self, source: PathSource | QmpSource) -> None:
        """NotInInventory if this host's administrator did not name it."""
        if isinstance(source, PathSource):
            allowed = any(_is_below(Path(source.path), one) for one in self._inventory.folders)
            named = source.path
        else:
            allowed = any(_is_named(Path(source.socket), one) for one in self._inventory.qmp)
            named = source.socket
        if not allowed:
            raise NotInInventory(
                f"{named} is not in this host's inventory.",
                hint="Name its folder or its QMP socket in host.toml of this host.",
            )

    def check_target(self, directory: Path) -> None:
        """NotInInventory if nothing may be restored into the folder."""
        if any(_is_below(directory, one) for one in self._inventory.recovery):
            return
        raise NotInInventory(
            f"{directory} is not a folder into which this host restores.",
            hint="Name it in `recovery` of [inventory] in host.toml of this host.",
        )

    def sockets(self) -> list[Path]:
        """The QMP sockets that there are now."""
        found: list[Path] = []
        for one in self._inventory.qmp:
            if one.is_dir():
                found += sorted(path for path in one.iterdir() if path.is_socket())
            elif one.is_socket():
                found.append(one)
        return found

    def disks(self) -> list[tuple[str, Path, int]]:
        """(machine, path, bytes) of the raw disks that lie in the folders now."""
        found = []
        for folder in self._inventory.folders:
            for path in _files(folder):
                size = _size(path)
                if size and _is_below(path, folder):
                    machine = path.stem if path.parent == folder else path.parent.name
                    found.append((machine, path, size))
        return found


def _files(folder: Path) -> list[Path]:
    """Files in the folder, and in the folders in it: one for each machine."""
    try:
        entries = sorted(folder.iterdir())
        inner = [path for one in entries if one.is_dir() for path in sorted(one.iterdir())]
    except OSError:
        return []
    return [path for path in (*entries, *inner) if not path.name.startswith(".")]


def _size(path: Path) -> int:
    """Bytes of a disk that a file or block device holds; 0 for everything else."""
    try:
        status = path.stat()
        if stat.S_ISBLK(status.st_mode):
            with path.open("rb") as device:
                return device.seek(0, 2)
    except OSError:
        return 0
    is_raw = stat.S_ISREG(status.st_mode) and path.suffix in (".raw", ".img", "")
    return status.st_size if is_raw and status.st_size % 512 == 0 else 0


def _is_named(path: Path, named: Path) -> bool:
    return path == named or path.parent == named


def _is_below(path: Path, folder: Path) -> bool:
    """A link may lead to a block device, as those of volume managers do, and else not outside."""
    if ".." in path.parts or not path.is_relative_to(folder):
        return False
    return path.resolve().is_relative_to(folder.resolve()) or path.is_block_device()
