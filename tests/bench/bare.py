"""The API's peer: bare FastAPI routes, each with one query that is equal to the API's own.

A process of its own, served as the API is: the same server settings, TLS and pool, the same query
and the same answer, by the same libraries. Nobody is authenticated, nothing is scoped, counted,
audited or kept for a repeat. Its role passes the database's wall, so nothing is set before a query.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.checkpoints.identity import moment_of
from app.checkpoints.schemas import BUCKETS_DEFAULT, TimelineOutput
from app.checkpoints.timeline import load_buckets, make_frame
from app.database.roles import MIGRATE
from app.database.sessions import TenantSession, make_engine
from app.http.process import ApiSettings, server_config
from app.http.schemas import Page
from app.kit.ids import Kind, new_uuid, show
from app.kit.paging import LIMIT_DEFAULT
from app.kit.settings import read_settings
from app.models import Vpg
from app.vpgs.schemas import VpgInput, VpgOutput
from app.vpgs.settings import Settings
from app.vpgs.showing import show_vpg, shown_vpgs
from app.vpgs.state import Lifecycle, Link, Recovery, Sla, Sync


def make_bare(engine: AsyncEngine) -> FastAPI:
    """The application."""
    app = FastAPI(docs_url=None, redoc_url=None)

    @app.get("/tenants/{tenant_id}/vpgs")
    async def list_vpgs(tenant_id: UUID) -> Page[VpgOutput]:
        wanted = shown_vpgs(tenant_id).where(Vpg.lifecycle != Lifecycle.REMOVED)
        ordered = wanted.order_by(Vpg.created_at, Vpg.id).limit(LIMIT_DEFAULT + 1)
        async with AsyncSession(engine) as orm:
            rows = (await orm.execute(ordered)).all()
        return Page(items=[show_vpg(row, datetime.now(UTC)) for row in rows], next_cursor=None)

    @app.get("/tenants/{tenant_id}/vpgs/{vpg_id}")
    async def get_vpg(tenant_id: UUID, vpg_id: UUID) -> VpgOutput:
        async with AsyncSession(engine) as orm:
            found = await orm.execute(shown_vpgs(tenant_id).where(Vpg.id == vpg_id))
            return show_vpg(found.one(), datetime.now(UTC))

    @app.get("/tenants/{tenant_id}/vpgs/{vpg_id}/timeline")
    async def get_timeline(tenant_id: UUID, vpg_id: UUID) -> TimelineOutput:
        now = datetime.now(UTC)
        frame = make_frame(now - timedelta(days=1), now, BUCKETS_DEFAULT)
        async with AsyncSession(engine) as orm:
            buckets = await load_buckets(TenantSession(tenant_id, orm), vpg_id, frame, None)
        return TimelineOutput(
            begins_at=moment_of(frame.begin_ms),
            ends_at=moment_of(frame.end_ms),
            bucket_seconds=frame.width_ms / 1000,
            oldest_at=now,
            recoverable_at=now,
            buckets=buckets,
        )

    @app.post("/tenants/{tenant_id}/vpgs", status_code=201)
    async def create_vpg(tenant_id: UUID, wanted: VpgInput) -> VpgOutput:
        row = _new(tenant_id, wanted)
        async with AsyncSession(engine) as orm:
            await orm.execute(insert(Vpg), row)
            await orm.commit()
        return _shown(row)

    return app


def _new(tenant_id: UUID, wanted: VpgInput) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "tenant_id": tenant_id,
        "id": new_uuid(now),
        "created_at": now,
        "version": 1,
        "name": wanted.name,
        "description": wanted.description,
        "labels": wanted.labels,
        "lifecycle": Lifecycle.DRAFT,
        "recovery": Recovery.NONE,
        "settings": (wanted.settings or Settings()).model_dump(mode="json"),
        "profile_id": None,
        "protected_site_id": None,
        "recovery_site_id": None,
        "store": wanted.store,
    }


def _shown(row: dict[str, Any]) -> VpgOutput:
    kept = {name: value for name, value in row.items() if name in VpgOutput.model_fields}
    return VpgOutput(
        **kept | {"id": show(Kind.VPG, row["id"]), "settings": Settings(**row["settings"])},
        sync=Sync.NONE,
        sla=Sla.UNKNOWN,
        link=Link.DISCONNECTED,
        moved_by=[],
        rpo_actual_seconds=None,
        recoverable_at=None,
        history_actual_seconds=None,
        oldest_at=None,
        backlog_bytes=0,
        gap_reason=None,
        reported_at=None,
        machines=0,
        disks=0,
        protected_bytes=0,
        retained_bytes=None,
    )


async def _serve(settings: ApiSettings) -> None:
    engine = make_engine(settings.database, MIGRATE)
    await uvicorn.Server(server_config(settings, make_bare(engine))).serve()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_serve(read_settings(ApiSettings)))
