"""Reading and writing key files: private, whole or not at all, and never over another key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from host_agent.wire import limits
from host_agent.wire.errors import BadKeyFile
from host_agent.wire.keys import TenantKey


def read_tenant_key(path: Path, tenant: str | None = None) -> TenantKey:
    """The tenant key of a file, of the named tenant if given; BadKeyFile."""
    try:
        key = TenantKey.parse(_read(path))
    except BadKeyFile as error:
        hint = error.hint or "Name the tenant's key file with --key-file."
        raise BadKeyFile(f"{path}: {error.message}", hint=hint) from None
    if tenant is not None and key.tenant != tenant:
        raise BadKeyFile(
            f"{path} holds the key of tenant {key.tenant}, not of {tenant}.",
            hint="Name that tenant's own key file.",
        )
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(limits.KEY_OBJECT_BYTES_MAX + 1)
    except OSError as error:
        raise BadKeyFile(
            f"The key file cannot be read: {error.strerror}.",
            hint="Name the tenant's key file with --key-file.",
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise BadKeyFile(
            "The key file can be read by others than its owner.",
            hint=f"chmod 600 {path}",
        )
    return data


def check_new(path: Path) -> None:
    """BadKeyFile before a key is asked for that could then not be kept."""
    if path.exists() or not path.absolute().parent.is_dir():
        raise BadKeyFile(
            f"{path} is there already, or its folder is not; nothing was asked for.",
            hint="Name a new file in a folder that exists.",
        )


def write_new(path: Path, data: bytes) -> None:
    """Create a key file, mode 0600, durable; BadKeyFile if something has its name."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise BadKeyFile(
            f"{path} is there already; keys are never overwritten.", hint="Name another file."
        ) from None
    except OSError as error:
        raise BadKeyFile(
            f"The key file {path} cannot be written: {error.strerror}.",
            hint="Name a folder that exists and may be written to.",
        ) from None
