"""The one folder of an installation on one machine: its secret, its root, its server's identity."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from app.certificates.authority import Authority, load_authority, make_root, sign_server
from app.kit.sealing import Sealer
from host_agent.wire.errors import HoldfastError

_SECRET_BYTES = 32
#: A server's certificate with less left than this is made anew at the next start.
_SERVER_LEFT_MIN = timedelta(days=30)


class FolderBusy(HoldfastError):
    """Another process works in the folder."""

    code = "folder_busy"


class FolderDamaged(HoldfastError):
    """A file of the folder is missing or is not what it should be."""

    code = "folder_damaged"


@dataclass(frozen=True)
class Folder:
    """Paths, and what lies there. Made by `open_folder`."""

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
    def root_file(self) -> Path:
        """The root's certificate: what clients believe the API by."""
        return self.path / "root.crt"

    @property
    def provider_key(self) -> Path:
        """Where the first provider key is written if there is no terminal to show it on."""
        return self.path / "provider.key"

    def sealer(self) -> Sealer:
        """From the deployment's secret, made in an empty folder."""
        file = self.path / "secret"
        if not file.exists():
            self._refuse_after_start(file)
            write_private(file, secrets.token_bytes(_SECRET_BYTES))
        return Sealer(file.read_bytes())

    def root(self, now: datetime) -> Authority:
        """The deployment's root, made in an empty folder; FolderDamaged."""
        certificate, key = self.root_file, self.path / "root.key"
        if not key.exists():
            self._refuse_after_start(key)
            made = make_root(now)
            write_private(certificate, made.certificate_pem.encode())
            write_private(key, made.key_pem)
        try:
            return load_authority(certificate.read_bytes(), key.read_bytes())
        except (OSError, ValueError) as error:
            raise FolderDamaged(
                f"{key} or {certificate} cannot be used: {error}.",
                hint="Put back both files from the recovery kit.",
            ) from None

    def server_files(self, root: Authority, names: Sequence[str], now: datetime) -> Path:
        """The file with the API's certificate, the root and the key, made anew near its end."""
        file = self.path / "server.pem"
        if not (file.exists() and _serves(file.read_bytes(), names, now)):
            made = sign_server(root, names, now)
            file.unlink(missing_ok=True)
            write_private(file, made.certificate_pem.encode() + made.key_pem)
        return file

    def _refuse_after_start(self, file: Path) -> None:
        """What the database was sealed with is never silently replaced."""
        if (self.postgres / "data").exists():
            raise FolderDamaged(
                f"{file} is missing, and the database cannot be read without it.",
                hint="Put it back from the recovery kit. Nothing was changed.",
            )


def _serves(pem: bytes, names: Sequence[str], now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    has_names = {str(name.value) for name in listed} == set(names)
    return has_names and certificate.not_valid_after_utc - now > _SERVER_LEFT_MIN


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
