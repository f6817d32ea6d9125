"""`/v1/hosts`, `/v1/join-tokens`, and what a host itself calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Response, status

from app.hosts import service
from app.hosts.routes import JoinRoute, RenewalRoute, machine_router
from app.hosts.schemas import (
    CertificateOutput,
    EnrolmentInput,
    HostOutput,
    JoinTokenCreated,
    JoinTokenInput,
    JoinTokenOutput,
    RenewalInput,
)
from app.hosts.tokens import join_text
from app.http.etags import put_etag
from app.http.listing import Cursor, Limit, Listing, Sort, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import Host, JoinToken
from app.models.hosts import HostState

router = tenant_router("hosts")
joining, renewing = machine_router(JoinRoute), machine_router(RenewalRoute)
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.HOSTS_READ)], [requires(Privilege.HOSTS_WRITE)]


def _show_host(host: Host) -> HostOutput:
    return HostOutput(
        id=show(Kind.HOST, host.id),
        name=host.name,
        site_id=show(Kind.SITE, host.site_id) if host.site_id else None,
        state=host.state,
        agent_version=host.agent_version,
        created_at=host.created_at,
        certificate_expires_at=host.certificate_expires_at,
        revoked_at=host.revoked_at,
    )


def _show_token(row: JoinToken) -> JoinTokenOutput:
    return JoinTokenOutput(
        id=show(Kind.JOIN_TOKEN, row.id),
        name=row.name,
        site_id=show(Kind.SITE, row.site_id) if row.site_id else None,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        revoked_at=row.revoked_at,
    )


@router.get("/hosts", dependencies=_READ, summary="List hosts")
async def list_hosts(
    unit: Unit,
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
    sort: Sort = None,
    state: Annotated[HostState | None, Query()] = None,
) -> Page[HostOutput]:
    """The tenant's hosts, revoked ones too, filtered and sorted, a page at a time."""
    filters = [] if state is None else [Host.state == state]
    rows, following = await list_page(unit, Host, Listing(limit, cursor, sort), filters)
    return Page(items=[_show_host(row) for row in rows], next_cursor=following)


@router.get("/hosts/{host_id}", dependencies=_READ, summary="Get a host")
async def get_host(unit: Unit, host_id: str, response: Response) -> HostOutput:
    """One host."""
    host = await service.get_host(unit, host_id)
    put_etag(response, host.version)
    return _show_host(host)


@router.post("/hosts/{host_id}:revoke", dependencies=_WRITE, summary="Revoke a host")
async def revoke_host(unit: Unit, host_id: str, response: Response) -> HostOutput:
    """Shut a host out at once and for good; never delayed."""
    host = await service.get_host(unit, host_id)
    await service.revoke_host(unit, host)
    put_etag(response, host.version)
    return _show_host(host)


@router.get("/join-tokens", dependencies=_READ, summary="List join tokens")
async def list_join_tokens(
    unit: Unit, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, sort: Sort = None
) -> Page[JoinTokenOutput]:
    """Rights to join, used ones too, a page at a time."""
    rows, following = await list_page(unit, JoinToken, Listing(limit, cursor, sort))
    return Page(items=[_show_token(row) for row in rows], next_cursor=following)


@router.post(
    "/join-tokens",
    dependencies=_WRITE,
    status_code=status.HTTP_201_CREATED,
    summary="Let a host join",
)
async def create_join_token(
    unit: Unit, wanted: JoinTokenInput, response: Response
) -> JoinTokenCreated:
    """A token that lets one host join once within minutes: in this answer and nowhere else."""
    row, token = await service.create_join_token(unit, wanted)
    shown = _show_token(row)
    response.headers["location"] = f"/v1/join-tokens/{shown.id}"
    text = join_text(token, unit.tools.root.fingerprint)
    return JoinTokenCreated(**shown.model_dump(), token=text)


@router.get("/join-tokens/{join_token_id}", dependencies=_READ, summary="Get a join token")
async def get_join_token(unit: Unit, join_token_id: str) -> JoinTokenOutput:
    """One right to join, without its secret."""
    return _show_token(await service.get_join_token(unit, join_token_id))


@router.post(
    "/join-tokens/{join_token_id}:revoke", dependencies=_WRITE, summary="Revoke a join token"
)
async def revoke_join_token(unit: Unit, join_token_id: str) -> JoinTokenOutput:
    """Nobody joins by it any more."""
    row = await service.get_join_token(unit, join_token_id)
    await service.revoke_join_token(unit, row)
    return _show_token(row)


@joining.post(
    "/enrolments",
    dependencies=[requires(Privilege.HOST_JOIN)],
    status_code=status.HTTP_201_CREATED,
    summary="Join as a host",
)
async def enrol_host(unit: Unit, wanted: EnrolmentInput) -> CertificateOutput:
    """For a host with a join token as its bearer token: a certificate from its tenant."""
    return await service.enrol_host(unit, wanted)


@renewing.post(
    "/renewals",
    dependencies=[requires(Privilege.HOST_RENEW)],
    status_code=status.HTTP_201_CREATED,
    summary="Renew a host's certificate",
)
async def renew_host(unit: Unit, wanted: RenewalInput) -> CertificateOutput:
    """For a host, proven by its old key: a new certificate, also up to 7 days after its end."""
    return await service.renew_host(unit, wanted)
