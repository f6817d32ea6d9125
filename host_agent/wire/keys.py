"""Tenant, group and data keys: how they are made, wrapped and written. FORMAT.md section 7."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from host_agent.wire import limits
from host_agent.wire.errors import BadKeyFile, WrongKey
from host_agent.wire.names import Identity, check_name

KEY_BYTES = 32
WRAPPED_BYTES = 12 + KEY_BYTES + 16


class _TenantKeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    holdfast: str
    version: int
    tenant: str
    id: str
    key: str


class _GroupKeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    holdfast: str
    version: int
    tenant: str
    group: str
    id: str
    key: str
    wrapped: str
    tenant_key_id: str
    check: str


class _KeyObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    holdfast: str
    version: int
    tenant: str
    group: str
    host: str
    generation: str
    tenant_key_id: str
    group_key_id: str
    group_key: str
    data_key: str


def key_id(key: bytes) -> str:
    """16 hexadecimal digits that name a key and tell nothing of it."""
    return HKDF(SHA256(), 8, None, b"holdfast key id v1").derive(key).hex()


def _context(purpose: str, parts: tuple[str, ...]) -> bytes:
    return "\0".join(("holdfast wrap v1", purpose, *parts)).encode()


def wrap(under: bytes, key: bytes, purpose: str, *parts: str) -> str:
    """`key` sealed under another for one purpose and context, Base64."""
    nonce = os.urandom(12)
    sealed = AESGCM(under).encrypt(nonce, key, _context(purpose, parts))
    return base64.b64encode(nonce + sealed).decode()


def unwrap(under: bytes, wrapped: str, purpose: str, *parts: str) -> bytes:
    """What `wrap` sealed; WrongKey for another key, purpose or context."""
    raw = _decode(wrapped, WRAPPED_BYTES)
    try:
        return AESGCM(under).decrypt(raw[:12], raw[12:], _context(purpose, parts))
    except InvalidTag:
        raise WrongKey(
            f"The wrapped {purpose} key of {'/'.join(parts)} does not open with this key.",
            hint="Use the key file that belongs to this tenant and group.",
        ) from None


def _decode(text: str, length: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != length or base64.b64encode(raw).decode() != text:
        raise BadKeyFile("A key is not Base64 of the right length.", hint="Use an unchanged copy.")
    return raw


_File = TypeVar("_File", _TenantKeyFile, _GroupKeyFile, _KeyObject)


def _parse(data: bytes, kind: type[_File], word: str) -> _File:
    problem = f"This is not a {word} of Holdfast"
    if len(data) > limits.KEY_OBJECT_BYTES_MAX:
        raise BadKeyFile(f"{problem}: it is too large.")
    try:
        parsed = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadKeyFile(f"{problem}: {error}.", hint="Name the right file.") from None
    if parsed.holdfast != word or parsed.version != 1:
        raise BadKeyFile(f"{problem} but a {parsed.holdfast!r:.40} of version {parsed.version}.")
    return parsed


@dataclass(frozen=True)
class TenantKey:
    """The key that opens everything of a tenant."""

    tenant: str
    key: bytes

    def __repr__(self) -> str:
        return f"TenantKey({self.tenant!r}, id={self.id})"

    @property
    def id(self) -> str:
        """The key's public name."""
        return key_id(self.key)

    @classmethod
    def make(cls, tenant: str) -> TenantKey:
        """A new random key."""
        return cls(check_name("tenant", tenant), os.urandom(KEY_BYTES))

    @classmethod
    def parse(cls, data: bytes) -> TenantKey:
        """From a key file's content; BadKeyFile."""
        file = _parse(data, _TenantKeyFile, "tenant key")
        key = cls(check_name("tenant", file.tenant), _decode(file.key, KEY_BYTES))
        if key.id != file.id:
            raise BadKeyFile("The tenant key does not match its id.", hint="Use an unchanged copy.")
        return key

    def dump(self) -> bytes:
        """The key file's content."""
        text = base64.b64encode(self.key).decode()
        return msgspec.json.encode(_TenantKeyFile("tenant key", 1, self.tenant, self.id, text))


@dataclass(frozen=True)
class GroupKey:
    """The key that wraps the data keys of a group's streams, with its form under the tenant's."""

    tenant: str
    group: str
    key: bytes
    wrapped: str
    tenant_key_id: str

    def __repr__(self) -> str:
        return f"GroupKey({self.tenant!r}, {self.group!r}, id={self.id})"

    @property
    def id(self) -> str:
        """The key's public name."""
        return key_id(self.key)

    @property
    def check(self) -> str:
        """32 hexadecimal digits over the whole file.

        A host cannot open `wrapped`; were it damaged unnoticed, the tenant could open nothing that
        was sealed from then on.
        """
        whole = (self.tenant, self.group, self.wrapped, self.tenant_key_id)
        info = "\0".join(("holdfast group key file v1", *whole)).encode()
        return HKDF(SHA256(), 16, None, info).derive(self.key).hex()

    @classmethod
    def make(cls, tenant_key: TenantKey, group: str) -> GroupKey:
        """A new random key, wrapped under the tenant's."""
        check_name("group", group)
        key = os.urandom(KEY_BYTES)
        wrapped = wrap(tenant_key.key, key, "group", tenant_key.tenant, group)
        return cls(tenant_key.tenant, group, key, wrapped, tenant_key.id)

    @classmethod
    def parse(cls, data: bytes) -> GroupKey:
        """From a key file's content; BadKeyFile."""
        f = _parse(data, _GroupKeyFile, "group key")
        key = cls(f.tenant, f.group, _decode(f.key, KEY_BYTES), f.wrapped, f.tenant_key_id)
        check_name("tenant", f.tenant)
        check_name("group", f.group)
        _decode(f.wrapped, WRAPPED_BYTES)
        if key.id != f.id or key.check != f.check:
            raise BadKeyFile("The group key file is damaged.", hint="Use an unchanged copy.")
        return key

    def dump(self) -> bytes:
        """The key file's content."""
        text = base64.b64encode(self.key).decode()
        return msgspec.json.encode(
            _GroupKeyFile(
                "group key",
                1,
                self.tenant,
                self.group,
                self.id,
                text,
                self.wrapped,
                self.tenant_key_id,
                self.check,
            )
        )


def make_data_key(
    group_key: GroupKey, identity: Identity, generation: bytes
) -> tuple[bytes, bytes]:
    """(a new data key, the object `keys/GENERATION` that restores it)."""
    data_key = os.urandom(KEY_BYTES)
    context = (identity.tenant, identity.group, identity.host, generation.hex())
    wrapped = wrap(group_key.key, data_key, "data", *context)
    made = _KeyObject(
        "data key", 1, *context, group_key.tenant_key_id, group_key.id, group_key.wrapped, wrapped
    )
    return data_key, msgspec.json.encode(made)


def _check_object(data: bytes, identity: Identity, generation: bytes) -> _KeyObject:
    found = _parse(data, _KeyObject, "data key")
    stated = (found.tenant, found.group, found.host, found.generation)
    if stated != (identity.tenant, identity.group, identity.host, generation.hex()):
        raise WrongKey(
            f"The data key is that of {'/'.join(stated)}, not of {identity}/{generation.hex()}."
        )
    return found


def check_key_object(data: bytes, identity: Identity, generation: bytes) -> None:
    """Raise BadKeyFile or WrongKey unless `data` is that generation's key object. Opens nothing."""
    _check_object(data, identity, generation)


def open_with_group(
    data: bytes, group_key: GroupKey, identity: Identity, generation: bytes
) -> bytes:
    """The data key from its object, for the host that holds the group key."""
    found = _check_object(data, identity, generation)
    if found.group_key_id != group_key.id:
        raise WrongKey(
            f"The data key of {identity} is wrapped under group key {found.group_key_id}; "
            f"this key file holds {group_key.id}.",
            hint="Use the key file that this group had when the journal was written.",
        )
    return unwrap(
        group_key.key,
        found.data_key,
        "data",
        found.tenant,
        found.group,
        found.host,
        found.generation,
    )


def open_with_tenant(
    data: bytes, tenant_key: TenantKey, identity: Identity, generation: bytes
) -> bytes:
    """The data key from its object, for the tenant: nothing else is needed."""
    found = _check_object(data, identity, generation)
    if found.tenant_key_id != tenant_key.id:
        raise WrongKey(
            f"The journal of {identity} was sealed under tenant key {found.tenant_key_id}; "
            f"this key file holds {tenant_key.id}.",
            hint="Use the key file that this tenant had when the journal was written.",
        )
    group_key = unwrap(tenant_key.key, found.group_key, "group", found.tenant, found.group)
    if key_id(group_key) != found.group_key_id:
        raise WrongKey(f"The key object of {identity} holds another group key than it says.")
    return unwrap(
        group_key, found.data_key, "data", found.tenant, found.group, found.host, found.generation
    )


#: What opens a journal: the tenant's key any of its groups', a group's key its own.
JournalKey = TenantKey | GroupKey


def open_data_key(data: bytes, key: JournalKey, identity: Identity, generation: bytes) -> bytes:
    """The data key from its object, by either key above it; WrongKey, BadKeyFile."""
    if isinstance(key, GroupKey):
        return open_with_group(data, key, identity, generation)
    return open_with_tenant(data, key, identity, generation)
