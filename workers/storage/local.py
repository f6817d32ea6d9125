"""A local folder as a store.

An object appears by `link(2)` of a file that is complete and synced, so a name holds the whole
object or nothing, whoever is killed when, and of two creators exactly one wins. It is reported as
made only after the directory is synced too.

Unfinished files lie in `.unfinished/` with an exclusive lock each. A file there that can be locked
belongs to nobody who lives, so cleaning up never disturbs a concurrent writer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from host_agent.wire.pieces import Content, Pieces
from workers.storage.errors import (
    ObjectMissing,
    ObjectTooLarge,
    ObjectTooShort,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    StoreUnsuitable,
)
from workers.storage.failpoints import failpoint
from workers.storage.port import (
    OBJECT_BYTES_MAX,
    Created,
    Listed,
    check_folder,
    check_object_name,
    check_range,
)

_UNFINISHED = ".unfinished"
_TRIES_MAX = 8

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_NO_HARD_LINKS = {errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


class LocalStore:
    """Objects as files below one directory, names as paths.

    `wall_ns` is the clock of the machine that keeps the folder.
    """

    def __init__(
        self, root: Path, *, create: bool = True, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Open the folder; `create` makes it where only its last parts are missing.

        Raises StoreRefused or StoreUnavailable, naming the folder.
        """
        self._root = root
        self._wall_ns = wall_ns
        self._answered_at: int | None = None
        self._durable_directories: set[str] = set()
        self._failed_sync: str | None = None
        with self._named("open"):
            if create:
                _make_directories(root)
                _make_directories(root / _UNFINISHED)
            if not root.is_dir():
                raise StoreRefused(
                    f"{self.label} is not a folder that exists.",
                    hint="Name the folder that the journal was written to; is it mounted?",
                )
        if create:
            self.clean_up()

    @property
    def label(self) -> str:
        return f"file://{self._root}"

    def put_if_absent(self, name: str, data: Content) -> Created:
        target = self._path(name)
        if self._failed_sync is not None:
            raise StoreRefused(
                f"{self.label} failed a sync ({self._failed_sync}); nothing more is written.",
                hint="The disk may not hold what it says. Check it, then start again.",
            )
        with self._named(f"create {name}"):
            if target.exists():
                self._sync_directories(target.parent)
                return Created.EXISTS
            return self._put(target, data)

    def _put(self, target: Path, data: Content) -> Created:
        _make_directories(target.parent)
        for _ in range(_TRIES_MAX):
            with self._unfinished_file() as (path, descriptor):
                _write_all(descriptor, data)
                os.fsync(descriptor)
                failpoint("object_after_sync_before_link")
                try:
                    os.link(path, target)
                except FileExistsError:
                    self._sync_directories(target.parent)
                    return Created.EXISTS
                except FileNotFoundError:
                    continue  # cleaned up between its creation and our lock: another file then
                except OSError as error:
                    if error.errno in _NO_HARD_LINKS:
                        raise self._unsuitable(error) from error
                    raise
                failpoint("object_after_link_before_directory_sync")
            self._sync_directories(target.parent)
            return Created.CREATED
        raise StoreUnavailable(f"{self.label} lost its unfinished files {_TRIES_MAX} times.")

    def get(self, name: str) -> bytes:
        with self._open(name) as (descriptor, size):
            if size > OBJECT_BYTES_MAX:
                raise ObjectTooLarge(f"{name} in {self.label} has {size} bytes.")
            return self._read(descriptor, name, 0, size)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        check_range(start, length)
        with self._open(name) as (descriptor, size):
            if start + length > size:
                raise ObjectTooShort(
                    f"{name} in {self.label} has {size} bytes, not {start + length}."
                )
            return self._read(descriptor, name, start, length)

    def get_tail(self, name: str, length: int) -> bytes:
        check_range(0, length)
        with self._open(name) as (descriptor, size):
            start = max(0, size - length)
            return self._read(descriptor, name, start, size - start)

    def size(self, name: str) -> int:
        with self._open(name) as (_, size):
            return size

    def list(
        self, folder: str, start_after: str = "", limit: int | None = None
    ) -> Iterator[Listed]:
        count = 0
        for entry in self._entries(folder, start_after):
            name = folder + entry
            if not (size := self._file_size(name)):
                continue
            if limit is not None and count >= limit:
                return
            count += 1
            yield Listed(name, size[0])

    def folders(self, folder: str) -> Iterator[str]:
        for entry in self._entries(folder):
            with self._named(f"list {folder}"):
                if (self._root / folder / entry).is_dir():
                    yield f"{folder}{entry}/"

    def delete(self, name: str) -> None:
        target = self._path(name)
        with self._named(f"delete {name}"):
            target.unlink(missing_ok=True)

    def answered_at(self) -> int | None:
        return self._answered_at

    def clean_up(self) -> int:
        """Remove what killed writers left; returns how many files. Safe beside living writers."""
        removed = 0
        with self._named("clean up"):
            for path in (self._root / _UNFINISHED).iterdir():
                removed += _remove_if_abandoned(path)
        return removed

    def _path(self, name: str) -> Path:
        return self._root / check_object_name(name)

    def _entries(self, folder: str, start_after: str = "") -> tuple[str, ...]:
        """Names in a folder, in order, without what is not ours."""
        check_folder(folder)
        after = start_after.removeprefix(folder) if start_after.startswith(folder) else ""
        if not after and start_after > folder:
            return ()
        with self._named(f"list {folder}"):
            try:
                # A chain may have millions of names: most are passed over here.
                with os.scandir(self._root / folder) as found:
                    names = [entry.name for entry in found if entry.name > after]
            except (FileNotFoundError, NotADirectoryError):
                names = []
        self._answered()
        return tuple(sorted(name for name in names if not name.startswith(".")))

    def _file_size(self, name: str) -> tuple[int] | None:
        """The size of a file that is still there; None for folders and what was deleted since."""
        with self._named(f"list {name}"):
            try:
                status = (self._root / name).lstat()
            except FileNotFoundError:
                return None
        return (status.st_size,) if stat.S_ISREG(status.st_mode) else None

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, int]]:
        path = self._path(name)
        with self._named(f"read {name}"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                self._answered()
                raise ObjectMissing(self.label, name) from None
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise ObjectMissing(self.label, name)
                yield descriptor, status.st_size
            finally:
                os.close(descriptor)

    def _read(self, descriptor: int, name: str, start: int, length: int) -> bytes:
        pieces = []
        at, end = start, start + length
        while at < end:
            piece = os.pread(descriptor, end - at, at)
            if not piece:
                raise ObjectTooShort(f"{name} in {self.label} ends at byte {at}.")
            pieces.append(piece)
            at += len(piece)
        self._answered()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @contextlib.contextmanager
    def _unfinished_file(self) -> Iterator[tuple[Path, int]]:
        path = self._root / _UNFINISHED / secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            _make_directories(path.parent)
            descriptor = os.open(path, flags, 0o600)
        try:
            # A cleaner that holds the lock now removes the file; link() will miss it then.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield path, descriptor
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _sync_directories(self, directory: Path) -> None:
        """Make the directory's entries durable, and once its own entry and those above it."""
        try:
            _sync_directory(directory)
            failpoint("object_after_directory_sync_before_answer")
            if str(directory) not in self._durable_directories:
                for parent in directory.parents:
                    _sync_directory(parent)
                    if parent == self._root:
                        break
                self._durable_directories.add(str(directory))
        except OSError as error:
            # The kernel reports a lost write once; a second sync that succeeds proves nothing.
            self._failed_sync = f"{_errno_name(error)} on {directory}"
            raise OutcomeUnknown(
                f"{self.label} could not sync {directory}: {_errno_name(error)}.",
                hint="Check the disk below it.",
                retryable=False,
            ) from error
        self._answered()

    def _answered(self) -> None:
        self._answered_at = max(self._wall_ns(), self._answered_at or 0)

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Turn an operating-system error into one that names the store and says what to do."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise self._store_error(what, error) from error

    def _store_error(self, what: str, error: OSError) -> StoreError:
        name = _errno_name(error)
        message = f"{self.label} could not {what}: {name}, {os.strerror(error.errno or 0)}."
        if error.errno in _FULL:
            return StoreFull(message, hint="Make room on its file system; it goes on by itself.")
        if error.errno in _REFUSED:
            return StoreRefused(
                message, hint="Check its owner and permissions, and that it is mounted writable."
            )
        return StoreUnavailable(message, hint="Check the disk below it.")

    def _unsuitable(self, error: OSError) -> StoreUnsuitable:
        return StoreUnsuitable(
            f"{self.label} cannot create an object under its name in one step: "
            f"{_errno_name(error)} from link().",
            hint="Use a file system with hard links, all of the folder on one of them.",
        )


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, f"error {error.errno}")


def _write_all(descriptor: int, data: Content) -> None:
    parts = data.parts if isinstance(data, Pieces) else (data,)
    for part in filter(len, parts):
        rest = memoryview(part).cast("B")
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directories(path: Path) -> None:
    """Make what is missing of the path, each entry durable in its parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        _sync_directory(directory.parent)


def _remove_if_abandoned(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return 0  # its writer lives
    finally:
        os.close(descriptor)
    return 1
