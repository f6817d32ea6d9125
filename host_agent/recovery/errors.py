"""What can go wrong while disks are brought back."""

from __future__ import annotations

import errno

from host_agent.wire.errors import HoldfastError


class RecoveryError(HoldfastError):
    """Base of a recovery's own errors."""

    code = "recovery_failed"


class TargetUnusable(RecoveryError):
    """An image cannot be written: no room, no permission, a failing disk."""

    code = "target_unusable"


class TargetInUse(RecoveryError):
    """Something is in the way: another image, or a recovery of another moment."""

    code = "target_in_use"


class VerifyFailed(RecoveryError):
    """What was read back is not what was received."""

    code = "verify_failed"


class DoorsAway(RecoveryError):
    """No data node serves the restore."""

    code = "doors_away"


class RestoreRefused(RecoveryError):
    """A data node ended the restore. `code` is its own; `retry_seconds` None: for good."""

    def __init__(
        self, code: str, message: str, *, hint: str = "", retry_seconds: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, retryable=retry_seconds is not None)
        self.code = code
        self.retry_seconds = retry_seconds


def target_error(path: object, doing: str, error: OSError) -> TargetUnusable:
    """The named error for what the system answered while `doing` something with `path`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TargetUnusable(
        f"{path} cannot be {doing}: {error.strerror}.",
        hint="Free space there; what is restored already is kept and gone on from."
        if full
        else "Check the folder's permissions and its file system, or name another folder.",
        retryable=full,
    )
