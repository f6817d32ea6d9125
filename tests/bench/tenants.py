"""A database of many tenants: groups with their members, keys, and a day of packed checkpoints.

Rows are entered as the superuser, in bulk; what is in them is what the product writes: packs by its
own packing code, keys wrapped by the tenants' own keys, tokens with the deployment's fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from sqlalchemy import URL, Engine, create_engine, insert, text

from app.checkpoints.identity import milliseconds, moment_of
from app.checkpoints.merging import PackKey, taken_times
from app.checkpoints.packing import COMPLETE, PACK_MS, Columns, pack
from app.checkpoints.state import CODES, CheckpointKind
from app.identity.privileges import Role
from app.identity.tokens import make_token
from app.keys.port import WrappedKey
from app.kit.ids import Kind, new_uuid, show
from app.kit.sealing import Sealer
from app.models import (
    ApiKey,
    Base,
    Disk,
    Grant,
    GroupKeyRecord,
    Host,
    Machine,
    Tenant,
    TenantLedger,
    Vpg,
    VpgDisk,
    VpgStatus,
)
from app.tenants.schemas import Plan
from app.vpgs.settings import Settings
from host_agent.wire.keys import GroupKey, TenantKey

#: Groups are on one host and on two, in turn.
HOSTS = 2
_CHECKPOINT_MS = 5_000
_DAY_MS = 86_400_000
_PACK_COLUMNS = (
    "tenant_id", "vpg_id", "begins_at", "count", "complete", "first_complete_at",
    "last_complete_at", "response_us_max", "hold_us_max", "skew_us_max", "packed",
)  # fmt: skip
_PACK_TYPES = (
    "uuid", "uuid", "timestamptz", "int4", "int4", "timestamptz",
    "timestamptz", "int4", "int4", "int4", "bytea",
)  # fmt: skip


@dataclass(frozen=True)
class KnownTenant:
    """A tenant as its callers know it: a token and the groups' identifiers."""

    id: UUID
    token: str
    vpgs: tuple[UUID, ...]


@dataclass(frozen=True)
class Filler:
    """Enters tenants. Keys' files go to the key service's folder."""

    url: URL
    sealer: Sealer
    keys: Path
    now: datetime

    def fill(self, tenants: int, groups: int) -> list[KnownTenant]:
        """So many tenants with so many groups each."""
        engine = create_engine(self.url)
        (self.keys / "tenants").mkdir(mode=0o700, parents=True, exist_ok=True)
        made = [self._tenant(engine, number, groups) for number in range(tenants)]
        with psycopg.connect(_plain(self.url)) as connection:
            # References were entered with what they refer to.
            connection.execute("SET session_replication_role = replica")
            _copy(connection, _packs(made, self.now))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
        engine.dispose()
        return made

    def _tenant(self, engine: Engine, number: int, groups: int) -> KnownTenant:
        tenant_id = new_uuid(self.now)
        token = make_token(tenant_id, new_uuid(self.now))
        own = {"tenant_id": tenant_id, "created_at": self.now, "version": 1}
        tenant = {
            "id": tenant_id, "name": f"tenant {number}", "state": "active", "version": 1,
            "plan": Plan(vpgs_max=1_000_000).model_dump(), "created_at": self.now,
        }  # fmt: skip
        key = {
            **own, "id": token.id, "name": "first",
            "fingerprint": token.fingerprint(self.sealer), "last_used_at": self.now,
        }  # fmt: skip
        grant = {
            "tenant_id": tenant_id, "id": new_uuid(self.now), "api_key_id": token.id,
            "role": Role.ADMINISTRATOR,
        }  # fmt: skip
        hosts = _hosts(tenant_id)
        rows: list[tuple[type[Base], list[dict[str, Any]]]] = [
            (Tenant, [tenant]),
            (TenantLedger, [{"tenant_id": tenant_id, "audit_hash": bytes(32)}]),
            (ApiKey, [key]),
            (Grant, [grant]),
            (Host, [self._host(own, host) for host in hosts]),
        ]
        vpgs = tuple(new_uuid(self.now + timedelta(milliseconds=at)) for at in range(groups))
        members = [self._group(own, vpg, place, hosts) for place, vpg in enumerate(vpgs)]
        rows += [(one[0][0], [row for _, row in one]) for one in zip(*members, strict=True)]
        rows.append((GroupKeyRecord, self._group_keys(tenant_id, vpgs)))
        with engine.begin() as connection:
            for model, values in rows:
                connection.execute(insert(model), values)
        return KnownTenant(tenant_id, token.text, vpgs)

    def _host(self, own: dict[str, Any], host_id: UUID) -> dict[str, Any]:
        return {
            **own, "id": host_id, "name": str(host_id), "state": "active", "agent_version": "1",
            "joined_by": host_id, "key_fingerprint": host_id.bytes,
            "certificate_expires_at": self.now + timedelta(days=1),
        }  # fmt: skip

    def _group(
        self, own: dict[str, Any], vpg_id: UUID, place: int, hosts: tuple[UUID, ...]
    ) -> list[tuple[type[Base], dict[str, Any]]]:
        """A group with one machine on each of its hosts, in sync since a day ago."""
        machine, disk, now = new_uuid(self.now), new_uuid(self.now), self.now
        tenant = {"tenant_id": own["tenant_id"]}
        begun = now - timedelta(milliseconds=_DAY_MS)
        return [
            (Machine, {**own, "id": machine, "host_id": hosts[0], "name": f"m{place}", "labels": {},
                       "is_present": True, "seen_at": now}),
            (Disk, {**own, "id": disk, "machine_id": machine, "name": "vda", "bytes": 1 << 34,
                    "source": {"kind": "path", "path": f"/disks/{place}"}, "is_present": True}),
            (Vpg, {**own, "id": vpg_id, "name": f"group {place}", "description": "",
                   "created_at": now + timedelta(milliseconds=place), "labels": {"app": "shop"},
                   "lifecycle": "protecting", "recovery": "none", "store": "default",
                   "settings": Settings().model_dump(mode="json")}),
            (VpgStatus, {**tenant, "vpg_id": vpg_id, "sync": "in_sync", "link": "connected",
                         "backlog_bytes": 0, "protected_since": begun, "recoverable_at": now,
                         "oldest_at": begun, "reported_at": now}),
            (VpgDisk, {**tenant, "disk_id": disk, "vpg_id": vpg_id, "machine_id": machine,
                       "name": f"m{place}.vda", "added_at": now}),
        ]  # fmt: skip

    def _group_keys(self, tenant_id: UUID, vpgs: Iterable[UUID]) -> list[dict[str, Any]]:
        tenant = show(Kind.TENANT, tenant_id)
        over = TenantKey.make(tenant)
        file = self.keys / "tenants" / f"{tenant}.key"
        file.touch(0o600)
        file.write_bytes(over.dump())
        rows = []
        for vpg_id in vpgs:
            vpg = show(Kind.VPG, vpg_id)
            made = GroupKey.make(over, vpg)
            wrapped = WrappedKey(tenant, vpg, made.id, made.wrapped, made.tenant_key_id)
            key = {"tenant_id": tenant_id, "vpg_id": vpg_id, "created_at": self.now}
            rows.append({**key, "wrapped": wrapped.dump()})
        return rows


def _hosts(tenant_id: UUID) -> tuple[UUID, ...]:
    return tuple(UUID(int=tenant_id.int ^ (1 + place)) for place in range(HOSTS))


# ------------------------------------------------------------------ checkpoints


def _day(now: datetime) -> list[tuple[datetime, list[Columns]]]:
    """The last day by ten minutes: what a pack has of a group on one host, on two, and so on."""
    random = np.random.default_rng(1)
    end = milliseconds(now) // PACK_MS * PACK_MS
    return [
        (moment_of(at), [_columns(random, hosts + 1) for hosts in range(HOSTS)])
        for at in range(end - _DAY_MS, end, PACK_MS)
    ]


def _columns(random: np.random.Generator, hosts: int) -> Columns:
    expected = np.arange(137, PACK_MS, _CHECKPOINT_MS, dtype=np.int64)
    count = len(expected)
    costs = random.gamma(2, 2000, (4, count)).astype(np.int64)
    steps = random.gamma(1.5, 20_000, (count, hosts)).astype(np.int64)
    zeros = np.zeros(count, np.int64)
    return Columns(
        hosts=tuple(UUID(int=place) for place in range(hosts)),
        expected=expected,
        taken=costs[0],
        flags=np.full(count, CODES[CheckpointKind.CRASH] | COMPLETE, np.int64),
        response=costs[1],
        hold=costs[2] if hosts > 1 else zeros,
        skew=costs[3] if hosts > 1 else zeros,
        positions=np.cumsum(steps, axis=0) + (1 << 40),
    )


def _packs(tenants: list[KnownTenant], now: datetime) -> Iterator[tuple[Any, ...]]:
    day = [(begins_at, sorts, _totals(begins_at, sorts)) for begins_at, sorts in _day(now)]
    for tenant in tenants:
        hosts = _hosts(tenant.id)
        packed = [
            [pack(replace(one, hosts=hosts[: len(one.hosts)])) for one in columns]
            for _, columns, _ in day
        ]
        for place, vpg_id in enumerate(tenant.vpgs):
            sort = place % HOSTS
            for at, (begins_at, _, totals) in enumerate(day):
                yield (tenant.id, vpg_id, begins_at, *totals[sort], packed[at][sort])


def _totals(begins_at: datetime, sorts: list[Columns]) -> list[tuple[Any, ...]]:
    """The columns beside a pack, as they are recorded."""
    key = PackKey(UUID(int=0), milliseconds(begins_at))
    found = []
    for one in sorts:
        times = taken_times(key, one)
        worst = (int(part.max()) for part in (one.response, one.hold, one.skew))
        found.append((len(one), len(one), min(times), max(times), *worst))
    return found


def _copy(connection: psycopg.Connection[Any], rows: Iterator[tuple[Any, ...]]) -> None:
    columns = ", ".join(_PACK_COLUMNS)
    with connection.cursor() as cursor:
        wanted = f"COPY checkpoint_packs ({columns}) FROM STDIN WITH (FORMAT BINARY)"
        with cursor.copy(wanted.encode()) as copy:
            copy.set_types(_PACK_TYPES)
            for row in rows:
                copy.write_row(row)


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def bytes_of(url: URL) -> int:
    """What the database takes on its disk."""
    engine = create_engine(url)
    with engine.connect() as connection:
        size = connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
    engine.dispose()
    return int(size)
