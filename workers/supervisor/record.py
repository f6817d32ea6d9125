"""What a data node keeps of its tenants, sealed on its disk: enough to go on alone for days.

A file a tenant, replaced whole. The key lies beside the files with mode 0600: it keeps a copied
disk or backup from telling store credentials, not whoever is root on the node.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from host_agent.wire.errors import BadName, HoldfastError
from host_agent.wire.names import check_name
from host_agent.wire.serving import ServingRecord

_MAGIC = b"HFNR\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32
_FILE_BYTES_MAX = 4 * 1024 * 1024
_SUFFIX = ".record"
KEY_FILE = "node.key"


class RecordUnreadable(HoldfastError):
    """A kept record that does not open: damaged, or of another node."""

    code = "record_unreadable"


class KeptIdentity(msgspec.Struct, frozen=True):
    """A service's certificate (PEM, with its chain) and key. `renew_at`: seconds since 1970."""

    certificate: str
    key: str
    renew_at: float

    def __repr__(self) -> str:
        return "KeptIdentity(…)"


class Kept(msgspec.Struct, frozen=True):
    """All that the node has of a tenant. `probed`: the store that can keep a journal, as tried."""

    record: ServingRecord
    identities: dict[str, KeptIdentity] = {}
    probed: str | None = None


_DECODER = msgspec.json.Decoder(Kept)


@dataclass
class RecordStore:
    """The folder of sealed records. Calls block, shortly."""

    directory: Path
    key: bytes = field(repr=False)

    @classmethod
    def open(cls, directory: Path) -> RecordStore:
        """The folder and its key, both made if they are not there; RecordUnreadable."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = directory / KEY_FILE
        if not file.exists():
            replace_file(file, secrets.token_bytes(_KEY_BYTES))
        key = file.read_bytes()
        if len(key) != _KEY_BYTES:
            raise RecordUnreadable(
                f"{file} is not this node's key.",
                hint="Restore it, or remove the folder: the control plane sends all records again.",
            )
        return cls(directory, key)

    def load(self) -> Iterator[Kept | RecordUnreadable]:
        """Every record; an error in place of one that does not open, which is left as it is."""
        for file in sorted(self.directory.glob(f"*{_SUFFIX}")):
            try:
                yield self._open(file)
            except RecordUnreadable as error:
                yield error

    def save(self, kept: Kept) -> None:
        """Replace what is kept of this tenant; OSError leaves it as it was."""
        tenant = kept.record.tenant
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self.key).encrypt(nonce, msgspec.json.encode(kept), _context(tenant))
        replace_file(self._file(tenant), _MAGIC + nonce + sealed)

    def remove(self, tenant: str) -> None:
        """Forget a tenant."""
        self._file(tenant).unlink(missing_ok=True)
        _sync(self.directory)

    def _file(self, tenant: str) -> Path:
        return self.directory / f"{check_name('tenant', tenant)}{_SUFFIX}"

    def _open(self, file: Path) -> Kept:
        tenant = file.name.removesuffix(_SUFFIX)
        try:
            with file.open("rb") as opened:
                data = opened.read(_FILE_BYTES_MAX + 1)
            if not data.startswith(_MAGIC) or len(data) > _FILE_BYTES_MAX:
                raise ValueError
            start = len(_MAGIC) + _NONCE_BYTES
            plain = AESGCM(self.key).decrypt(
                data[len(_MAGIC) : start], data[start:], _context(tenant)
            )
            kept = _DECODER.decode(plain)
            check_name("tenant", tenant)
            if kept.record.tenant != tenant:
                raise ValueError
        except (OSError, ValueError, InvalidTag, BadName, msgspec.DecodeError):
            raise RecordUnreadable(
                f"{file} does not open with this node's key.",
                hint="The control plane sends it again; until then its tenant is not served.",
                retryable=True,
            ) from None
        return kept


def supersede(kept: Kept | None, record: ServingRecord) -> Kept | None:
    """What is to be kept once this record came; None if it is not newer than what is there."""
    if kept is None:
        return Kept(record)
    if record.version <= kept.record.version:
        return None
    same_store = kept.probed == record.store.url
    return Kept(record, kept.identities, kept.probed if same_store else None)


def with_identity(kept: Kept, service: str, identity: KeptIdentity) -> Kept:
    """With another certificate for one service."""
    return Kept(kept.record, {**kept.identities, service: identity}, kept.probed)


def with_probed(kept: Kept) -> Kept:
    """Its store was tried and can keep a journal."""
    return Kept(kept.record, kept.identities, kept.record.store.url)


def _context(tenant: str) -> bytes:
    return b"holdfast node record v1\0" + tenant.encode()


def replace_file(file: Path, data: bytes) -> None:
    """Write the file whole or not at all, mode 0600, on the disk before it returns; OSError."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    part.replace(file)
    _sync(file.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
