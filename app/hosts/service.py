"""Hosts and join tokens of a tenant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from cryptography import x509
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.certificates.authority import HOST_LIFETIME, PublicKey, key_of_request, pem_of, sign_host
from app.certificates.service import load_tenant_authority
from app.database.sessions import TenantSession
from app.hosts.enrolment import key_fingerprint
from app.hosts.schemas import (
    CertificateOutput,
    EnrolmentInput,
    HostOutput,
    JoinTokenInput,
    JoinTokenOutput,
    RenewalInput,
)
from app.http.lookup import find
from app.http.unit import TenantUnit
from app.identity.tokens import Token, make_token
from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import Problem, not_found
from app.models import Host, JoinToken
from app.models.base import key_of
from app.models.hosts import HostState
from app.rights.joined import note_joined
from app.sites.service import get_site
from host_agent.wire.names import agent_san


@dataclass(frozen=True)
class JoinRight:
    """What a join token is for. `placement_id`: a tenant's process on a provider's host."""

    name: str
    site_id: UUID | None
    pool_id: UUID | None = None
    placement_id: UUID | None = None


async def get_host(unit: TenantUnit, host_id: str) -> Host:
    """The tenant's host; Problem `not_found` for every other id, a placed process's too."""
    host = await find(unit, Host, Kind.HOST, host_id)
    if host.placement_id is not None:
        raise not_found()
    return host


async def get_join_token(unit: TenantUnit, join_token_id: str) -> JoinToken:
    """The tenant's join token; Problem `not_found` for every other id."""
    token = await find(unit, JoinToken, Kind.JOIN_TOKEN, join_token_id)
    if token.placement_id is not None:
        raise not_found()
    return token


async def create_join_token(unit: TenantUnit, wanted: JoinTokenInput) -> tuple[JoinToken, Token]:
    """A right to join, and its token; Problem `not_found` for a site that is not the tenant's."""
    site = None if wanted.site_id is None else await get_site(unit, wanted.site_id)
    unit.require_at(None if site is None else site.id)
    lifetime = timedelta(seconds=wanted.lifetime_seconds)
    row, token = await add_join_token(
        unit, JoinRight(wanted.name, None if site is None else site.id), lifetime
    )
    shown = show(Kind.JOIN_TOKEN, row.id)
    unit.note("join_tokens.created", shown, name=row.name)
    unit.shows_secret = shown
    return row, token


async def add_join_token(
    unit: TenantUnit, right: JoinRight, lifetime: timedelta
) -> tuple[JoinToken, Token]:
    """Enter a right to join; nothing is noted of it."""
    token = make_token(unit.session.tenant_id, new_uuid(unit.now))
    row = JoinToken(
        tenant_id=unit.session.tenant_id,
        id=token.id,
        created_at=unit.now,
        version=1,
        name=right.name,
        site_id=right.site_id,
        pool_id=right.pool_id,
        placement_id=right.placement_id,
        fingerprint=token.fingerprint(unit.tools.sealer),
        expires_at=unit.now + lifetime,
        used_at=None,
        revoked_at=None,
    )
    unit.session.orm.add(row)
    await unit.session.orm.flush()
    return row, token


async def revoke_join_token(unit: TenantUnit, row: JoinToken) -> None:
    """Nobody joins by it any more. Repeats change nothing."""
    if row.revoked_at is None:
        row.revoked_at = unit.now
        row.version += 1
        unit.note("join_tokens.revoked", show(Kind.JOIN_TOKEN, row.id), name=row.name)


async def enrol_host(unit: TenantUnit, wanted: EnrolmentInput) -> CertificateOutput:
    """Make the host of the join token that was used; Problem `request_refused`, `name_taken`."""
    key = key_of_request(wanted.certificate_request)
    token = await unit.session.orm.get_one(
        JoinToken, key_of(unit.session.tenant_id, unit.principal.id), populate_existing=True
    )
    host = Host(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        name=token.name,
        site_id=token.site_id,
        pool_id=token.pool_id,
        placement_id=token.placement_id,
        state=HostState.ACTIVE,
        agent_version=wanted.agent_version,
        joined_by=token.id,
        key_fingerprint=key_fingerprint(key),
        previous_key_fingerprint=None,
        certificate_expires_at=unit.now + HOST_LIFETIME,
        revoked_at=None,
    )
    unit.session.orm.add(host)
    try:
        await unit.session.orm.flush()
    except IntegrityError:
        raise Problem("name_taken", f"There is a host named {token.name} already.") from None
    if host.placement_id is not None:
        await note_joined(unit.session, host.placement_id, host.id)
    _note(unit, host, "joined")
    return await _certify(unit, host, key)


async def renew_host(unit: TenantUnit, wanted: RenewalInput) -> CertificateOutput:
    """A new certificate for the host whose old key signed the request."""
    key = key_of_request(wanted.certificate_request)
    host = await unit.session.orm.get_one(Host, key_of(unit.session.tenant_id, unit.principal.id))
    newest = key_fingerprint(key)
    if newest != host.key_fingerprint:
        host.previous_key_fingerprint, host.key_fingerprint = host.key_fingerprint, newest
    host.agent_version = wanted.agent_version
    host.certificate_expires_at = unit.now + HOST_LIFETIME
    host.version += 1
    _note(unit, host, "renewed")
    return await _certify(unit, host, key)


async def load_hosts(session: TenantSession, host_ids: Collection[UUID]) -> list[Host]:
    """These hosts of the tenant, in the order of their ids; one query."""
    found = await session.orm.scalars(
        select(Host)
        .where(Host.tenant_id == session.tenant_id, Host.id.in_(sorted(host_ids)))
        .order_by(Host.id)
    )
    return list(found)


async def revoked_hosts(session: TenantSession) -> frozenset[str]:
    """The ids of all hosts that were shut out, as users see them."""
    found = await session.orm.scalars(
        select(Host.id).where(Host.tenant_id == session.tenant_id, Host.state == HostState.REVOKED)
    )
    return frozenset(show(Kind.HOST, host_id) for host_id in found)


async def revoke_host(unit: TenantUnit, host: Host) -> None:
    """Shut a host out for good. Repeats change nothing."""
    if host.state != HostState.REVOKED:
        host.state, host.revoked_at = HostState.REVOKED, unit.now
        host.version += 1
        _note(unit, host, "revoked")


def _note(unit: TenantUnit, host: Host, what: str) -> None:
    """What became of a host. A placed tenant hears of the pool: the host is the provider's."""
    if host.placement_id is None:
        unit.note(f"hosts.{what}", show(Kind.HOST, host.id), name=host.name)
    else:
        assert host.pool_id is not None
        unit.note(f"pools.{what}", show(Kind.POOL, host.pool_id))


def show_host(host: Host) -> HostOutput:
    """As the API shows it."""
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


def show_token(row: JoinToken) -> JoinTokenOutput:
    """As the API shows it, without its secret."""
    return JoinTokenOutput(
        id=show(Kind.JOIN_TOKEN, row.id),
        name=row.name,
        site_id=show(Kind.SITE, row.site_id) if row.site_id else None,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        revoked_at=row.revoked_at,
    )


async def _certify(unit: TenantUnit, host: Host, key: PublicKey) -> CertificateOutput:
    authority = await load_tenant_authority(unit.session, unit.tools.sealer)
    tenant, shown = show(Kind.TENANT, host.tenant_id), show(Kind.HOST, host.id)
    uri = agent_san(tenant, shown)
    certificate = sign_host(authority, key, uri, unit.now)
    return CertificateOutput(
        tenant_id=tenant,
        host_id=shown,
        uri=uri,
        certificate=pem_of(certificate) + authority.certificate_pem,
        root_certificate=unit.tools.root.certificate_pem,
        expires_at=certificate.not_valid_after_utc,
        renew_at=_half(unit.now, certificate),
        control_doors=list(unit.tools.control_doors),
    )


def _half(now: datetime, certificate: x509.Certificate) -> datetime:
    return now + (certificate.not_valid_after_utc - now) / 2
