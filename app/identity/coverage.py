"""What of a tenant's objects lies within a reach: conditions for lists and single objects.

A site covers itself, its hosts with their machines, and the groups that it protects; a group covers
itself and its machines. What is done to a site, a host or a group is covered with it, and so are
people and API keys all of whose grants lie within. All else is the tenant's, and takes a reach over
the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute

from app.database.sessions import TenantSession
from app.identity.privileges import Privilege
from app.identity.scopes import Reach
from app.kit.ids import Kind, show
from app.models import (
    Alert,
    ApiKey,
    Disk,
    Event,
    Grant,
    Host,
    JoinToken,
    Machine,
    Operation,
    PoolGrant,
    Resource,
    ServiceProfile,
    Site,
    User,
    Vpg,
    VpgDisk,
    VpgPlan,
)

Condition = ColumnElement[bool]
#: What lets somebody see an object at all: without it the object is absent.
READ_OF: dict[type[Resource], Privilege] = {
    Site: Privilege.SITES_READ,
    Host: Privilege.HOSTS_READ,
    JoinToken: Privilege.HOSTS_READ,
    Machine: Privilege.MACHINES_READ,
    Disk: Privilege.MACHINES_READ,
    Vpg: Privilege.VPGS_READ,
    VpgPlan: Privilege.VPGS_READ,
    ServiceProfile: Privilege.SERVICE_PROFILES_READ,
    Operation: Privilege.OPERATIONS_READ,
    Alert: Privilege.ALERTS_READ,
    User: Privilege.USERS_READ,
    ApiKey: Privilege.API_KEYS_READ,
}

#: What is of another object, which it names.
_SUBJECTS: dict[type[Resource], InstrumentedAttribute[str]] = {
    Operation: Operation.subject,
    Alert: Alert.subject,
}


async def coverage(session: TenantSession, model: type[Resource], reach: Reach) -> Condition:
    """The condition on a row of this table to lie within; at most one query."""
    if reach.is_whole or model is ServiceProfile:  # shared: every group may be made from one
        return true()
    if model in _SUBJECTS:
        return _SUBJECTS[model].in_(await subjects_of(session, reach))
    rule = _RULES.get(model)
    return false() if rule is None else rule(session.tenant_id, reach)


async def subjects_of(session: TenantSession, reach: Reach) -> list[str]:
    """The sites, hosts and groups within, as users see them; one query."""
    tenant_id = session.tenant_id
    hosts = select(literal(Kind.HOST.value), Host.id)
    vpgs = select(literal(Kind.VPG.value), Vpg.id)
    found = await session.orm.execute(
        union_all(
            hosts.where(Host.tenant_id == tenant_id, _hosts(tenant_id, reach)),
            vpgs.where(Vpg.tenant_id == tenant_id, _vpgs(tenant_id, reach)),
        )
    )
    shown = [show(Kind(kind), key) for kind, key in found]
    return shown + [show(Kind.SITE, site_id) for site_id in sorted(reach.sites)]


async def event_coverage(session: TenantSession, reach: Reach) -> Condition:
    """The condition on an event to be of something within; at most one query."""
    if reach.is_whole:
        return true()
    subjects = await subjects_of(session, reach)
    named = (Event.data["subject"].as_string(), Event.data["vpg"].as_string())
    return or_(*(column.in_(subjects) for column in (Event.subject, *named)))


def _sites(_tenant_id: UUID, reach: Reach) -> Condition:
    return Site.id.in_(sorted(reach.sites))


def _hosts(_tenant_id: UUID, reach: Reach) -> Condition:
    return Host.site_id.in_(sorted(reach.sites))


def _join_tokens(_tenant_id: UUID, reach: Reach) -> Condition:
    return JoinToken.site_id.in_(sorted(reach.sites))


def _pool_grants(_tenant_id: UUID, reach: Reach) -> Condition:
    return PoolGrant.site_id.in_(sorted(reach.sites))


def _vpgs(_tenant_id: UUID, reach: Reach) -> Condition:
    is_named = Vpg.id.in_(sorted(reach.vpgs))
    return is_named | func.coalesce(Vpg.protected_site_id.in_(sorted(reach.sites)), false())


def _machines(tenant_id: UUID, reach: Reach) -> Condition:
    host = exists().where(
        Host.tenant_id == tenant_id, Host.id == Machine.host_id, _hosts(tenant_id, reach)
    )
    member = exists().where(
        VpgDisk.tenant_id == tenant_id,
        VpgDisk.machine_id == Machine.id,
        VpgDisk.vpg_id.in_(_ids_of_vpgs(tenant_id, reach)),
    )
    return host | member


def _disks(tenant_id: UUID, reach: Reach) -> Condition:
    machines = select(Machine.id).where(Machine.tenant_id == tenant_id)
    return Disk.machine_id.in_(machines.where(_machines(tenant_id, reach)))


def _plans(tenant_id: UUID, reach: Reach) -> Condition:
    return VpgPlan.vpg_id.in_(_ids_of_vpgs(tenant_id, reach))


def _users(tenant_id: UUID, reach: Reach) -> Condition:
    return _all_grants(Grant.user_id == User.id, tenant_id, reach)


def _api_keys(tenant_id: UUID, reach: Reach) -> Condition:
    return _all_grants(Grant.api_key_id == ApiKey.id, tenant_id, reach)


def _all_grants(owned: Condition, tenant_id: UUID, reach: Reach) -> Condition:
    """Whoever has grants, and none beyond."""
    of_owner = exists().where(Grant.tenant_id == tenant_id, owned)
    within = func.coalesce(Grant.site_id.in_(sorted(reach.sites)), false()) | func.coalesce(
        Grant.vpg_id.in_(_ids_of_vpgs(tenant_id, reach)), false()
    )
    return of_owner & ~of_owner.where(~within)


def _ids_of_vpgs(tenant_id: UUID, reach: Reach) -> Select[UUID]:
    return select(Vpg.id).where(Vpg.tenant_id == tenant_id, _vpgs(tenant_id, reach))


_RULES: dict[type[Resource], Callable[[UUID, Reach], Condition]] = {
    Site: _sites,
    Host: _hosts,
    JoinToken: _join_tokens,
    PoolGrant: _pool_grants,
    Machine: _machines,
    Disk: _disks,
    Vpg: _vpgs,
    VpgPlan: _plans,
    User: _users,
    ApiKey: _api_keys,
}
