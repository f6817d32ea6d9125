"""One tenant's ingest behind a data node's door, from the tenant's record."""

from __future__ import annotations

import asyncio
import socket

from host_agent.wire.serving import ServingRecord, StoreAccess
from workers.ingest.config import IngestSettings, LimitsConfig, commit_seconds_fastest
from workers.ingest.server import Server
from workers.ingest.service import Background, StoreWork
from workers.ingest.status import status_of
from workers.ingest.tls import ServerIdentity, tenant_context
from workers.storage.s3 import S3Credentials
from workers.supervisor.port import Service, ServiceStart

#: Renewals fail as long as the control plane is away: so long a host goes on with what it has.
GRACE_SECONDS = 7 * 86_400.0


def credentials_of(access: StoreAccess) -> S3Credentials | None:
    """The key pair that opens the tenant's store; None: whatever the process has."""
    if access.access_key_id is None or access.secret_access_key is None:
        return None
    return S3Credentials(access.access_key_id, access.secret_access_key, access.session_token)


def settings_of(record: ServingRecord, *, is_probed: bool) -> IngestSettings:
    """What a tenant's record says of its ingest."""
    access = record.store
    fastest = commit_seconds_fastest(access.url)
    return IngestSettings(
        tenant=record.tenant,
        store=access.url,
        credentials=credentials_of(access),
        hosts={right.host: frozenset(right.groups) for right in record.hosts},
        denied=frozenset(record.denied),
        grace_seconds=GRACE_SECONDS,
        commit_seconds_min=fastest,
        commit_seconds_max=5.0,
        limits=LimitsConfig(
            connections_max=record.quotas.connections_max,
            memory_bytes_max=record.quotas.memory_bytes_max,
            bytes_per_second=record.quotas.bytes_per_second,
        ),
        is_probed=is_probed,
    )


async def open_service(start: ServiceStart) -> Service:
    """Begin. BadConfig, StoreError: it cannot, and may be tried again."""
    settings = settings_of(start.record, is_probed=start.is_store_probed)
    context = tenant_context(start.identity, start.record.intermediate)
    work = await asyncio.to_thread(StoreWork, settings, start.log)
    service = TenantIngest(work, settings, Server(context, settings.limits, work.tools))
    await service.start(start.record)
    return service


class TenantIngest:
    """See workers.supervisor.port.Service."""

    def __init__(self, work: StoreWork, settings: IngestSettings, server: Server) -> None:
        self._work = work
        self._server = server
        self._background = Background(settings, work.tools)
        self._record: ServingRecord | None = None

    async def start(self, record: ServingRecord) -> None:
        """Take over what was stated before. StoreError."""
        self._record = record
        await self._background.start(self._server)

    def take(self, connected: socket.socket, address: str) -> None:
        self._server.take(connected, address)

    def change(self, record: ServingRecord) -> None:
        settings = settings_of(record, is_probed=True)
        self._record = record
        self._server.change(settings.rules, settings.limits)

    def renew(self, identity: ServerIdentity) -> None:
        assert self._record is not None
        self._server.renew(tenant_context(identity, self._record.intermediate))

    def status(self) -> dict[str, object]:
        return status_of(self._server, self._work.tools, self._background.now())

    def facts(self) -> list[dict[str, object]]:
        now = self._background.now()
        return [facts.report(now) for facts in self._server.all_facts()]

    async def stop(self) -> None:
        self._background.stop()
        await self._server.stop()
        self._work.leave()
