"""What a key service does. Everything that it gives out is wrapped, or sealed to one receiver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import msgspec
from msgspec import Meta

from app.kit.problems import Problem
from host_agent.wire.errors import WireError
from host_agent.wire.keyrequest import DataKeyAnswer, DataKeyRequest
from host_agent.wire.limits import KEY_OBJECT_BYTES_MAX
from host_agent.wire.ticket import DoorKey

#: What an envelope with a group's key is bound to, before tenant, group and the job's id.
JOB_CONTEXT = "group key for job"
#: What an envelope with a tenant's key is bound to, before the tenant.
RECOVERY_CONTEXT = "recovery key"

_Name = Annotated[str, Meta(max_length=63)]
_Wrapped = Annotated[str, Meta(max_length=256)]


class KeyProblem(Problem):
    """What a key service answers instead of what was asked for."""

    named: ClassVar[str]

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(self.named, message, hint=hint)


class KeyRefused(KeyProblem):
    """The key service does not believe who asks, or what."""

    named = "key_refused"


class KeyMissing(KeyProblem):
    """The key service does not have the key that is needed, or cannot read it."""

    named = "key_missing"


class KeyServiceAway(KeyProblem):
    """The key service does not answer."""

    named = "key_service_away"


class WrappedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group's key under its tenant's, as the database keeps it. It tells nothing of the key."""

    tenant: _Name
    vpg: _Name
    id: _Name
    wrapped: _Wrapped
    tenant_key_id: _Name

    def dump(self) -> str:
        """As a column holds it."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def parse(cls, text: str) -> WrappedKey:
        """From a column; WireError."""
        try:
            return msgspec.json.decode(text[:KEY_OBJECT_BYTES_MAX], type=cls)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise WireError(f"This is no wrapped key: {error}.") from None


@dataclass(frozen=True)
class Recipient:
    """Who may open an envelope, and why it is made: both go into the key service's log."""

    public_key: bytes
    reason: str


@dataclass(frozen=True)
class RestoreProcess:
    """A tenant's restore process, by its certificate with its authority's (PEM); and why."""

    chain: str
    reason: str


class KeyService(Protocol):
    """Raises KeyRefused, KeyMissing and KeyServiceAway."""

    async def make_tenant_key(self, tenant: str) -> str:
        """Make the tenant's key, if it has none. Returns the key's id. May be repeated."""
        ...

    async def new_group_key(self, tenant: str, vpg: str, tenant_key_id: str) -> WrappedKey:
        """A new group's key under the tenant key of this id."""
        ...

    async def issue_data_key(
        self, request: DataKeyRequest, wrapped: WrappedKey, denied: frozenset[str]
    ) -> DataKeyAnswer:
        """A data key for the host that signed the request. `denied` hosts never get one again."""
        ...

    async def seal_group_key(self, wrapped: WrappedKey, ticket: str, to: Recipient) -> bytes:
        """The group's key file in an envelope for a process that works on one job."""
        ...

    async def seal_for_restore(
        self, wrapped: WrappedKey, ticket: str, to: RestoreProcess
    ) -> DoorKey:
        """The group's key file for the restore process of the group's tenant at a data node."""
        ...

    async def export_tenant_key(self, tenant: str, to: Recipient) -> bytes:
        """The tenant's key file in an envelope, for when the deployment is gone."""
        ...


class NoKeys:
    """In the place of a key service where the process was told of none."""

    async def make_tenant_key(self, tenant: str) -> str:
        raise _absent(tenant)

    async def new_group_key(self, tenant: str, vpg: str, tenant_key_id: str) -> WrappedKey:
        raise _absent(tenant, vpg, tenant_key_id)

    async def issue_data_key(
        self, request: DataKeyRequest, wrapped: WrappedKey, denied: frozenset[str]
    ) -> DataKeyAnswer:
        raise _absent(request, wrapped, denied)

    async def seal_group_key(self, wrapped: WrappedKey, ticket: str, to: Recipient) -> bytes:
        raise _absent(wrapped, ticket, to)

    async def seal_for_restore(
        self, wrapped: WrappedKey, ticket: str, to: RestoreProcess
    ) -> DoorKey:
        raise _absent(wrapped, ticket, to)

    async def export_tenant_key(self, tenant: str, to: Recipient) -> bytes:
        raise _absent(tenant, to)


def _absent(*_asked: object) -> KeyServiceAway:
    return KeyServiceAway(
        "This process was told of no key service.",
        hint="Set HOLDFAST_KEYS_SOCKET to the socket of `holdfast keys`.",
    )
