"""An installation's secret, root and server certificate: made once, never silently again."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from app.certificates.authority import Authority, load_authority, make_root, sign_server
from app.embedded.folder import Folder, write_private
from app.kit.sealing import Sealer
from host_agent.wire.errors import HoldfastError

_SECRET_BYTES = 32
#: A server's certificate with less left than this is made anew at the next start.
_SERVER_LEFT_MIN = timedelta(days=30)


class FolderDamaged(HoldfastError):
    """A file of the folder is missing or is not what it should be."""

    code = "folder_damaged"


def sealer_of(folder: Folder) -> Sealer:
    """From the deployment's secret, made in an empty folder; FolderDamaged."""
    file = folder.secret
    if not file.exists():
        _refuse_after_start(folder, file)
        write_private(file, secrets.token_bytes(_SECRET_BYTES))
    return Sealer(file.read_bytes())


def root_of(folder: Folder, now: datetime) -> Authority:
    """The deployment's root, made in an empty folder; FolderDamaged."""
    certificate, key = folder.root_file, folder.root_key
    if not key.exists():
        _refuse_after_start(folder, key)
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


def write_server_file(folder: Folder, root: Authority, names: Sequence[str], now: datetime) -> None:
    """The file with the API's certificate, the root and the key, made anew near its end."""
    file = folder.server_file
    if not (file.exists() and _serves(file.read_bytes(), names, now)):
        made = sign_server(root, names, now)
        file.unlink(missing_ok=True)
        write_private(file, made.certificate_pem.encode() + made.key_pem)


def _refuse_after_start(folder: Folder, file: Path) -> None:
    """What the database was sealed with is never silently replaced."""
    if folder.used.exists():
        raise FolderDamaged(
            f"{file} is missing, and the database cannot be read without it.",
            hint="Put it back from the recovery kit. Nothing was changed.",
        )


def _serves(pem: bytes, names: Sequence[str], now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificate(pem)
    listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    has_names = {str(name.value) for name in listed} == set(names)
    return has_names and certificate.not_valid_after_utc - now > _SERVER_LEFT_MIN
