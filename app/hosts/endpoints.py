"""`/v1/hosts`, `/v1/join-tokens`, and what a host itself calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Response, status

from app.hosts import service
from app.hosts.routes import JoinRoute, RenewalRoute, machine_router
from app.hosts.schemas import (
    CertificateOutput,
    EnrolmentInput,
    HostDetail,
    HostOutput,
    JoinTokenCreated,
    JoinTokenInput,
    JoinTokenOutput,
    RenewalInput,
)
from app.hosts.showing import show_detail, shown_hosts, status_of
from app.hosts.tokens import join_text
from app.http.etags import put_etag
from app.http.listing import Cursor, Limit, Listing, Sort, list_page, list_rows
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.paging import LIMIT_DEFAULT
from app.models import Host, JoinToken
from app.models.hosts import HostState

router = tenant_router("hosts")
joining, renewing = machine_router(JoinRoute), machine_router(RenewalRoute)
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.HOSTS_READ)], [requires(Privilege.HOSTS_WRITE)]


@router.get("/hosts", dependencies=_READ, summary="List hosts")
async def list_hosts(
    unit: Unit,
    limit: Limit = LIMIT_DEFAULT,
    cursor: Cursor = None,
    sort: Sort = None,
    state: Annotated[HostState | None, Query()] = None,
) -> Page[HostDetail]:
    """The tenant's hosts, revoked ones too, filtered and sorted, a page at a time."""
    wanted = shown_hosts(unit.session.tenant_id).where(Host.placement_id.is_(None))
    if state is not None:
        wanted = wanted.where(Host.state == state)
    rows, following = await list_rows(unit, Host, Listing(limit, cursor, sort), wanted)
    return Page(items=[show_detail(*row, unit.now) for row in rows], next_cursor=following)


@router.get("/hosts/{host_id}", dependencies=_READ, summary="Get a host")
async def get_host(unit: Unit, host_id: str, response: Response) -> HostDetail:
    """One host, and how it is."""
    host = await service.get_host(unit, host_id)
    put_etag(response, host.version)
    return show_detail(host, await status_of(unit.session.orm, host), unit.now)


@router.post("/hosts/{host_id}:revoke", dependencies=_WRITE, summary="Revoke a host")
async def revoke_host(unit: Unit, host_id: str, response: Response) -> HostOutput:
    """Shut a host out at once and for good; never delayed."""
    host = await service.get_host(unit, host_id)
    await service.revoke_host(unit, host)
    put_etag(response, host.version)
    return service.show_host(host)


@router.get("/join-tokens", dependencies=_READ, summary="List join tokens")
async def list_join_tokens(
    unit: Unit, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, sort: Sort = None
) -> Page[JoinTokenOutput]:
    """Rights to join, used ones too, a page at a time."""
    filters = [JoinToken.placement_id.is_(None)]
    rows, following = await list_page(unit, JoinToken, Listing(limit, cursor, sort), filters)
    return Page(items=[service.show_token(row) for row in rows], next_cursor=following)


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
    shown = service.show_token(row)
    response.headers["location"] = f"/v1/join-tokens/{shown.id}"
    text = join_text(token, unit.tools.root.fingerprint)
    return JoinTokenCreated(**shown.model_dump(), token=text)


@router.get("/join-tokens/{join_token_id}", dependencies=_READ, summary="Get a join token")
async def get_join_token(unit: Unit, join_token_id: str) -> JoinTokenOutput:
    """One right to join, without its secret."""
    return service.show_token(await service.get_join_token(unit, join_token_id))


@router.post(
    "/join-tokens/{join_token_id}:revoke", dependencies=_WRITE, summary="Revoke a join token"
)
async def revoke_join_token(unit: Unit, join_token_id: str) -> JoinTokenOutput:
    """Nobody joins by it any more."""
    row = await service.get_join_token(unit, join_token_id)
    await service.revoke_join_token(unit, row)
    return service.show_token(row)


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
