"""Tenants' restriction policies: kept in the tenant's scope, changed by the provider alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from app.http.unit import ProviderUnit, TenantUnit
from app.kit.ids import BadId, Kind, new_uuid, parse, show
from app.kit.problems import Problem
from app.models import Host, Pool, PoolGrant, Site, Tenant
from app.models.tenants import PROVIDER_ID
from app.rights import schemas
from app.rights.policy import Policy, PoolRight
from app.tenants.schemas import Plan


@dataclass(frozen=True)
class PoolFacts:
    """A pool as it is granted: its name and its territory."""

    name: str
    territory: str


async def load_policy(unit: TenantUnit, tenant: Tenant) -> Policy:
    """What the tenant may use; one query."""
    rows = await grants_of(unit)
    territories = Plan(**tenant.plan).territories
    return Policy(
        None if territories is None else tuple(territories),
        {row.pool_id: _right(row) for row in rows},
    )


async def grants_of(unit: TenantUnit) -> list[PoolGrant]:
    """The tenant's rights to pools, by their age."""
    found = await unit.session.orm.scalars(
        select(PoolGrant)
        .where(PoolGrant.tenant_id == unit.session.tenant_id)
        .order_by(PoolGrant.id)
    )
    return list(found)


def _right(row: PoolGrant) -> PoolRight:
    hosts = None if row.hosts is None else frozenset(UUID(one) for one in row.hosts)
    return PoolRight(row.machines_max, hosts)


async def read_policy(
    unit: ProviderUnit, wanted: schemas.PolicyInput
) -> tuple[Policy, dict[UUID, PoolFacts]]:
    """The policy that is meant, and the pools that it names; Problem `invalid_fields`."""
    pools: dict[UUID, PoolRight] = {}
    for place, one in enumerate(wanted.pools):
        pool_id = _key(Kind.POOL, one.pool_id, f"pools.{place}.pool_id")
        if pool_id in pools:
            raise _wrong(f"pools.{place}.pool_id", "The pool is named twice.")
        ids = one.host_ids
        hosts = None
        if ids is not None:
            where = f"pools.{place}.host_ids"
            hosts = frozenset(_key(Kind.HOST, text, where) for text in ids)
        pools[pool_id] = PoolRight(one.machines_max, hosts)
    territories = None if wanted.territories is None else tuple(dict.fromkeys(wanted.territories))
    return Policy(territories, pools), await _pool_facts(unit, pools)


async def _pool_facts(
    unit: ProviderUnit, wanted: Mapping[UUID, PoolRight]
) -> dict[UUID, PoolFacts]:
    async with unit.tools.database.tenant(PROVIDER_ID) as session:
        found = await session.orm.execute(
            select(Pool.id, Pool.name, Site.territory)
            .join(Site, (Site.tenant_id == Pool.tenant_id) & (Site.id == Pool.site_id))
            .where(Pool.tenant_id == PROVIDER_ID, Pool.id.in_(sorted(wanted)))
        )
        facts = {row.id: PoolFacts(row.name, row.territory) for row in found}
        hosts = await session.orm.execute(
            select(Host.id, Host.pool_id).where(
                Host.tenant_id == PROVIDER_ID, Host.pool_id.in_(sorted(wanted))
            )
        )
        of_pool = {(row.pool_id, row.id) for row in hosts}
    for place, (pool_id, right) in enumerate(wanted.items()):
        if pool_id not in facts:
            raise _wrong(f"pools.{place}.pool_id", "There is no such pool.")
        if any((pool_id, host_id) not in of_pool for host_id in right.hosts or ()):
            raise _wrong(f"pools.{place}.host_ids", "The pool has no such host.")
    return facts


def _key(kind: Kind, text: str, field: str) -> UUID:
    try:
        return parse(kind, text)
    except BadId as error:
        raise _wrong(field, str(error)) from None


def _wrong(field: str, message: str) -> Problem:
    told = {"field": f"body.{field}", "message": message}
    return Problem("invalid_fields", hint="Mend the fields that are listed.", errors=[told])


async def write_policy(
    unit: TenantUnit, tenant: Tenant, policy: Policy, facts: Mapping[UUID, PoolFacts]
) -> None:
    """Make the policy what the tenant may use."""
    there = {row.pool_id: row for row in await grants_of(unit)}
    for pool_id in there.keys() - policy.pools.keys():
        await unit.session.orm.delete(there[pool_id])
    for pool_id, right in policy.pools.items():
        hosts = None if right.hosts is None else sorted(str(one) for one in right.hosts)
        row = there.get(pool_id)
        if row is None:
            site = await _site_of(unit, pool_id, facts[pool_id])
            unit.session.orm.add(_grant(unit, pool_id, site, right, hosts))
        elif (row.machines_max, row.hosts) != (right.machines_max, hosts):
            row.machines_max, row.hosts = right.machines_max, hosts
            row.version += 1
    territories = None if policy.territories is None else list(policy.territories)
    tenant.plan = {**tenant.plan, "territories": territories}
    tenant.version += 1
    await unit.session.orm.flush()
    unit.note("policy.changed", show(Kind.TENANT, tenant.id), policy=policy_json(policy))


def _grant(
    unit: TenantUnit, pool_id: UUID, site: Site, right: PoolRight, hosts: list[str] | None
) -> PoolGrant:
    return PoolGrant(
        tenant_id=unit.session.tenant_id,
        id=new_uuid(unit.now),
        created_at=unit.now,
        version=1,
        pool_id=pool_id,
        site_id=site.id,
        machines_max=right.machines_max,
        hosts=hosts,
    )


async def _site_of(unit: TenantUnit, pool_id: UUID, facts: PoolFacts) -> Site:
    """The site that stands for the pool in the tenant's scope; it outlives the right, because
    groups may name it.
    """
    mine = unit.session.tenant_id
    found = await unit.session.orm.scalars(
        select(Site).where(
            Site.tenant_id == mine, (Site.pool_id == pool_id) | (Site.name == facts.name)
        )
    )
    sites = list(found)
    own = next((site for site in sites if site.pool_id == pool_id), None)
    if own is not None:
        return own
    key = new_uuid(unit.now)
    name = f"{facts.name} ({show(Kind.POOL, pool_id)})" if sites else facts.name
    site = Site(
        tenant_id=mine,
        id=key,
        created_at=unit.now,
        version=1,
        name=name,
        description="A pool of the provider's.",
        territory=facts.territory,
        pool_id=pool_id,
    )
    unit.session.orm.add(site)
    await unit.session.orm.flush()
    return site


def policy_json(policy: Policy) -> dict[str, object]:
    """For people and the audit log. A tenant is told which pools, never which hosts."""
    return {
        "territories": None if policy.territories is None else list(policy.territories),
        "pools": [
            {"pool_id": show(Kind.POOL, pool_id), "machines_max": right.machines_max}
            for pool_id, right in policy.pools.items()
        ],
    }


def show_policy(tenant_id: UUID, policy: Policy) -> schemas.PolicyOutput:
    """As the provider's staff see it."""
    return schemas.PolicyOutput(
        tenant_id=show(Kind.TENANT, tenant_id),
        territories=None if policy.territories is None else list(policy.territories),
        pools=[
            schemas.PoolRight(
                pool_id=show(Kind.POOL, pool_id),
                machines_max=right.machines_max,
                host_ids=None
                if right.hosts is None
                else [show(Kind.HOST, one) for one in sorted(right.hosts)],
            )
            for pool_id, right in policy.pools.items()
        ],
    )
