"""What the agent keeps over restarts: wrapped data keys, which groups are paused, its own lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from host_agent.control.errors import AgentRunning, StateUnusable
from host_agent.stream.ports import DataKey
from host_agent.wire import keys
from host_agent.wire.errors import BadKeyFile
from host_agent.wire.failpoints import failpoint
from host_agent.wire.limits import KEY_OBJECT_BYTES_MAX
from host_agent.wire.names import Identity


class StateDir:
    """The agent's directory, mode 0700. One agent at a time works with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        with usable(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            (path / "groups").mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> None:
        """Keep other agents away while this process lives; AgentRunning."""
        with usable(self.path):
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise AgentRunning(
                f"Another agent works with {self.path}.",
                hint="Stop it first, or name another state_dir.",
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Let another agent have it. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def group(self, name: str) -> Path:
        """A group's own directory."""
        path = self.path / "groups" / name
        with usable(path):
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def groups(self) -> list[str]:
        """The groups that have a directory."""
        with usable(self.path):
            return sorted(path.name for path in (self.path / "groups").iterdir())

    def forget(self, group: str) -> None:
        """Remove a group's directory with all keys in it; StateUnusable. Idempotent."""
        path = self.path / "groups" / group
        with usable(path), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
            _sync_directory(path.parent)

    def is_paused(self, group: str) -> bool:
        """Whether somebody paused the group and nobody resumed it."""
        return (self.group(group) / "paused").exists()

    def set_paused(self, group: str, is_paused: bool) -> None:
        """Remember it over restarts; StateUnusable."""
        path = self.group(group) / "paused"
        if is_paused:
            write_durably(path, b"")
        else:
            with usable(path):
                path.unlink(missing_ok=True)
                _sync_directory(path.parent)


class KeyStore:
    """The wrapped data keys of one stream: a file for each generation, mode 0600.

    A key is on disk before it seals anything: one that existed in memory alone would make what
    it sealed unreadable after a crash.
    """

    def __init__(self, directory: Path, group_key: keys.GroupKey, identity: Identity) -> None:
        self._directory = directory / "keys"
        self._group_key = group_key
        self._identity = identity
        with usable(self._directory):
            self._directory.mkdir(mode=0o700, exist_ok=True)

    def find(self, generation: bytes) -> DataKey | None:
        """That generation's key, None if there is none; StateUnusable, WrongKey, BadKeyFile."""
        path = self._path(generation)
        with usable(path):
            try:
                wrapped = path.read_bytes()[: KEY_OBJECT_BYTES_MAX + 1]
            except FileNotFoundError:
                return None
        key = keys.open_with_group(wrapped, self._group_key, self._identity, generation)
        return DataKey(key, wrapped)

    def make(self, generation: bytes) -> DataKey:
        """A new key, durably kept before it is returned; StateUnusable."""
        key, wrapped = keys.make_data_key(self._group_key, self._identity, generation)
        write_durably(self._path(generation), wrapped)
        return DataKey(key, wrapped)

    def unwrap(self, generation: bytes, wrapped: bytes) -> bytes:
        """The data key of any generation from its key object; WrongKey, BadKeyFile."""
        return keys.open_with_group(wrapped, self._group_key, self._identity, generation)

    def keep_only(self, generation: bytes) -> None:
        """Remove the keys of ended generations; the journal has them."""
        kept = self._path(generation)
        with usable(self._directory):
            for path in self._directory.iterdir():
                if path != kept:
                    path.unlink(missing_ok=True)

    def _path(self, generation: bytes) -> Path:
        return self._directory / generation.hex()


def load_group_key(path: Path, tenant: str, group: str) -> keys.GroupKey:
    """The key file of a group; BadKeyFile."""
    try:
        with path.open("rb") as file:
            data = file.read(KEY_OBJECT_BYTES_MAX + 1)
    except OSError as error:
        raise BadKeyFile(
            f"The key file {path} of group {group} cannot be read: {error.strerror}.",
            hint="Check key_file in the configuration.",
        ) from None
    key = keys.GroupKey.parse(data)
    if (key.tenant, key.group) != (tenant, group):
        raise BadKeyFile(
            f"{path} is the key of {key.tenant}/{key.group}, not of {tenant}/{group}.",
            hint="Check key_file in the configuration.",
        )
    return key


def write_durably(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all, mode 0600, and make it survive a power cut."""
    with usable(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            failpoint("state_after_written_before_named")
            Path(temporary).replace(path)
            failpoint("state_after_named_before_synced")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class usable(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """Turns operating-system errors into StateUnusable."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise StateUnusable(
                f"{self._path} cannot be used: {error.strerror}.",
                hint="Check state_dir, its owner, its mode and the space left.",
                retryable=True,
            ) from None
