"""What a data node is told of a tenant, made from rows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from host_agent.wire.serving import HostRight, Quotas, ServingRecord, StoreAccess

#: A host's certificate lives a day and is accepted for seven more: then nothing needs to deny it.
DENIED_FOR = timedelta(days=10)


@dataclass(frozen=True)
class HostRow:
    """A host of the tenant. Identifiers are as users see them; `revoked_at` None: it is active."""

    host: str
    revoked_at: datetime | None
    groups: Sequence[str]


@dataclass(frozen=True)
class TenantRow:
    """The tenant itself."""

    tenant: str
    version: int
    intermediate: str
    bytes_per_second: int | None = None


def make_record(
    tenant: TenantRow, store: StoreAccess, hosts: Sequence[HostRow], now: datetime
) -> ServingRecord:
    """The record. Equal rows make equal records, in whatever order they come."""
    active = sorted((row for row in hosts if row.revoked_at is None), key=lambda row: row.host)
    return ServingRecord(
        tenant=tenant.tenant,
        version=tenant.version,
        intermediate=tenant.intermediate,
        store=store,
        hosts=[HostRight(row.host, sorted(row.groups)) for row in active],
        denied=sorted(
            row.host
            for row in hosts
            if row.revoked_at is not None and now - row.revoked_at < DENIED_FOR
        ),
        quotas=Quotas(bytes_per_second=tenant.bytes_per_second),
    )


def stale(held: Mapping[str, int], current: Mapping[str, int]) -> list[str]:
    """Tenants of whom a node that holds these versions has to be told."""
    return sorted(tenant for tenant, version in current.items() if held.get(tenant, 0) < version)


def behind(held: Mapping[str, int], current: Mapping[str, int]) -> list[str]:
    """Tenants of whom the node knows a later version than the database, which was set back."""
    return sorted(tenant for tenant, version in current.items() if held.get(tenant, 0) > version)
