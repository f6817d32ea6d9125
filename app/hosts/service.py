"""Hosts and join tokens of a tenant."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from cryptography import x509
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.certificates.authority import HOST_LIFETIME, PublicKey, key_of_request, pem_of, sign_host
from app.certificates.service import load_tenant_authority
from app.database.sessions import TenantSession
from app.hosts.enrolment import key_fingerprint
from app.hosts.schemas import CertificateOutput, EnrolmentInput, JoinTokenInput, RenewalInput
from app.http.unit import TenantUnit
from app.identity.tokens import Token, make_token
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem, not_found
from app.models import Host, JoinToken
from app.models.base import Resource, key_of
from app.models.hosts import HostState
from app.sites.service import get_site
from host_agent.wire.names import agent_san

R = TypeVar("R", bound=Resource)


async def get_host(unit: TenantUnit, host_id: str) -> Host:
    """The tenant's host; Problem `not_found` for every other id."""
    return await _get(unit, Host, Kind.HOST, host_id)


async def get_join_token(unit: TenantUnit, join_token_id: str) -> JoinToken:
    """The tenant's join token; Problem `not_found` for every other id."""
    return await _get(unit, JoinToken, Kind.JOIN_TOKEN, join_token_id)


async def _get(unit: TenantUnit, model: type[R], kind: Kind, text: str) -> R:
    try:
        key: UUID = parse(kind, text)
    except BadId:
        raise not_found() from None
    found = await unit.session.orm.get(model, key_of(unit.session.tenant_id, key))
    if found is None:
        raise not_found()
    return found


async def create_join_token(unit: TenantUnit, wanted: JoinTokenInput) -> tuple[JoinToken, Token]:
    """A right to join, and its token; Problem `not_found` for a site that is not the tenant's."""
    site = None if wanted.site_id is None else await get_site(unit, wanted.site_id)
    token = make_token(unit.session.tenant_id, new_uuid(unit.now))
    row = JoinToken(
        tenant_id=unit.session.tenant_id,
        id=token.id,
        created_at=unit.now,
        version=1,
        name=wanted.name,
        site_id=site and site.id,
        fingerprint=token.fingerprint(unit.tools.sealer),
        expires_at=unit.now + timedelta(seconds=wanted.lifetime_seconds),
        used_at=None,
        revoked_at=None,
    )
    unit.session.orm.add(row)
    await unit.session.orm.flush()
    shown = show(Kind.JOIN_TOKEN, row.id)
    unit.note("join_tokens.created", shown, name=row.name)
    unit.shows_secret = shown
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
    unit.note("hosts.joined", show(Kind.HOST, host.id), name=host.name)
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
    unit.note("hosts.renewed", show(Kind.HOST, host.id), name=host.name)
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
        unit.note("hosts.revoked", show(Kind.HOST, host.id), name=host.name)


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
