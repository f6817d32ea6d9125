"""The one folder of an installation on one machine: what lies where in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from host_agent.wire.errors import HoldfastError

#: The name of the one data node.
LOCAL_NODE = "local"


class FolderBusy(HoldfastError):
    """Another process works in the folder."""

    code = "folder_busy"


@dataclass(frozen=True)
class Folder:
    """Its paths."""

    path: Path

    @property
    def postgres(self) -> Path:
        """The private server's folder."""
        return self.path / "postgres"

    @property
    def store_url(self) -> str:
        """Where the tenants' journals lie."""
        return f"file://{self.path / 'store'}"

    @property
    def keys_socket(self) -> Path:
        """Where the key service answers."""
        return self.path / "keys.sock"

    @property
    def secret(self) -> Path:
        """What the database's secrets are sealed with."""
        return self.path / "secret"

    @property
    def data_node(self) -> Path:
        """The data node's folder."""
        return self.path / "datanode"

    @property
    def data_node_token(self) -> Path:
        """By which the data node joins at its first start."""
        return self.path / "datanode.token"

    @property
    def used(self) -> Path:
        """There once the database holds something that was sealed."""
        return self.path / "used"

    @property
    def root_file(self) -> Path:
        """The root's certificate: what clients believe the API by."""
        return self.path / "root.crt"

    @property
    def root_key(self) -> Path:
        """The root's key."""
        return self.path / "root.key"

    @property
    def server_file(self) -> Path:
        """The API's certificate, the root and the key."""
        return self.path / "server.pem"

    @property
    def provider_key(self) -> Path:
        """Where the first provider key is written if there is no terminal to show it on."""
        return self.path / "provider.key"


def write_private(file: Path, data: bytes) -> None:
    """A new file of mode 0600, complete or absent."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    part.rename(file)


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """The folder, made if absent, for this process alone; FolderBusy."""
    # The private database runs as another user, who has to reach its own part of it.
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise FolderBusy(
            f"Another Holdfast runs in {path}.", hint="Stop it, or name another folder."
        ) from None
    else:
        yield Folder(path.resolve())
    finally:
        os.close(lock)
