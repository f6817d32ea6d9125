"""A tenant's restriction policy, and what is narrower in another one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from app.rights.territory import may_hold


@dataclass(frozen=True)
class PoolRight:
    """`hosts` by their ids; None: all of the pool."""

    machines_max: int
    hosts: frozenset[UUID] | None = None

    def allows(self, host_id: UUID) -> bool:
        """Whether the host may be used."""
        return self.hosts is None or host_id in self.hosts


@dataclass(frozen=True)
class Policy:
    """What a tenant may use: territories (None: all), and pools by their ids."""

    territories: tuple[str, ...] | None = None
    pools: Mapping[UUID, PoolRight] = field(default_factory=dict)


def is_narrower(before: Policy, after: Policy) -> bool:
    """Whether something that was allowed no longer is."""
    return _loses_territory(before, after) or any(
        _loses(right, after.pools.get(pool_id)) for pool_id, right in before.pools.items()
    )


def _loses_territory(before: Policy, after: Policy) -> bool:
    if after.territories is None:
        return False
    if before.territories is None:
        return True
    return not all(may_hold(after.territories, one) for one in before.territories)


def _loses(before: PoolRight, after: PoolRight | None) -> bool:
    if after is None or after.machines_max < before.machines_max:
        return True
    if after.hosts is None:
        return False
    return before.hosts is None or not before.hosts <= after.hosts
