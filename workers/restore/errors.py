"""What can go wrong with the place that a restore writes to, or with serving from it."""

from __future__ import annotations

import errno

from host_agent.wire.errors import HoldfastError


class RestoreError(HoldfastError):
    """Base of a restore's own errors."""

    code = "restore_error"


class TargetExists(RestoreError):
    """A file is in the way, and nobody said that it may be replaced."""

    code = "target_exists"


class TargetFull(RestoreError):
    """No room for the image."""

    code = "target_full"


class TargetFailed(RestoreError):
    """The image cannot be written: permissions, a read-only file system, a failing disk."""

    code = "target_failed"


class VerifyFailed(RestoreError):
    """What was read back is not what was written."""

    code = "verify_failed"


class NoSuchDisk(RestoreError):
    """The moment has no such disk, or the disk no such bytes."""

    code = "no_such_disk"


class TapMissing(RestoreError):
    """The program `holdfast-tap` cannot be found."""

    code = "tap_missing"


class TapFailed(RestoreError):
    """The tap ended or does not answer as it should."""

    code = "tap_failed"

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(
            message,
            hint=hint or "Try again; `holdfast-tap --help` shows whether the program runs here.",
            retryable=retryable,
        )


def target_error(path: object, doing: str, error: OSError) -> RestoreError:
    """The named error for what the system answered while `doing` something with `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetFull(
            f"{path} cannot be {doing}: no room is left.",
            hint="Free space there or name another folder; unfinished images end in .partial.",
            retryable=True,
        )
    if error.errno == errno.EFBIG:
        return TargetFailed(
            f"{path} cannot be {doing}: the file system allows no file of that size.",
            hint="Name a folder on a file system for large files, such as XFS.",
        )
    return TargetFailed(
        f"{path} cannot be {doing}: {error.strerror}.",
        hint="Check the folder's permissions and its file system, or name another folder.",
    )
