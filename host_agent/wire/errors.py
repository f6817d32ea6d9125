"""What can be wrong with bytes, names and keys: fields for software, a sentence for people."""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of every error that a user may see.

    `code` names what happened, `message` says it in a sentence, `hint` says what to do, and
    `retryable` whether the same call may succeed later without a change.
    """

    code = "internal"

    def __init__(self, message: str, *, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retryable = retryable

    def as_dict(self) -> dict[str, object]:
        """The error as it stands in JSON answers."""
        return {
            "error": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
        }

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class WireError(HoldfastError):
    """Bytes that do not follow FORMAT.md."""

    code = "bad_format"


class LimitExceeded(WireError):
    """A length or a count above its limit in `limits.py`."""

    code = "limit"


class ChecksumMismatch(WireError):
    """A CRC-32C, a BLAKE3 hash or a record hash that does not match its bytes."""

    code = "checksum_mismatch"


class ChainBroken(HoldfastError):
    """A segment that does not follow the one before it."""

    code = "chain_broken"


class UnsealFailed(HoldfastError):
    """A sealed part that does not open: changed bytes, or bytes from somewhere else."""

    code = "unseal_failed"


class WrongKey(HoldfastError):
    """A key that is not the one the data was sealed or wrapped with."""

    code = "wrong_key"


class BadName(HoldfastError):
    """A tenant, group, host or disk name outside the allowed alphabet."""

    code = "bad_name"


class BadKeyFile(HoldfastError):
    """A key file that cannot be read or is not what it should be."""

    code = "bad_key_file"
