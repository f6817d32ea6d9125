"""What a change of a tenant's rights would do, said before it is done. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.rights.policy import Policy
from app.rights.territory import may_hold


@dataclass(frozen=True)
class Effect:
    """One thing that would change. Counts are of the tenant's own; None: none are concerned."""

    what: str
    before: Any
    after: Any
    says: str
    is_undoable: bool = True
    groups: int | None = None
    machines: int | None = None


@dataclass(frozen=True)
class Standing:
    """A tenant on a host of the provider's: identifiers as users see them, and its own counts."""

    placement: str
    pool: str
    host: str
    territory: str
    is_allowed: bool
    groups: int
    machines: int


@dataclass(frozen=True)
class Spot:
    """A place that the tenant's data may come to now: what it is, its name, its territory."""

    kind: str
    name: str
    territory: str
    groups: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a plan reads. `nodes` and `stores` are the deployment's, `sites` the recovery sites of
    the tenant's groups.
    """

    standings: Sequence[Standing]
    nodes: Sequence[Spot]
    stores: Sequence[Spot]
    sites: Sequence[Spot]


def effects_of(before: Policy, after: Policy, facts: Facts) -> list[Effect]:
    """Everything that the policy would do. `facts.standings` are judged by the new one."""
    effects: list[Effect] = []
    if before.territories != after.territories:
        effects.append(_territories(before, after))
    effects += [_withdrawal(one) for one in facts.standings if not one.is_allowed]
    effects += _lost(before, after, facts.nodes, _NODE)
    effects += _lost(before, after, facts.stores, _STORE)
    effects += _lost(before, after, facts.sites, _SITE)
    if facts.nodes and not any(may_hold(after.territories, one.territory) for one in facts.nodes):
        effects.append(_nowhere("data node"))
    if facts.stores and not any(may_hold(after.territories, one.territory) for one in facts.stores):
        effects.append(_nowhere("journal store"))
    return effects


_NODE = "No stream goes in there any more, and no restore comes out; others go on."
_STORE = (
    "Nothing more is written there or read from there. What lies there stays, and can be read "
    "again once the territory is permitted; another store begins with a whole sync."
)
_SITE = "No restore goes there. The groups that name it keep it and are told."


def _list(policy: Policy) -> list[str] | None:
    return None if policy.territories is None else list(policy.territories)


def _territories(before: Policy, after: Policy) -> Effect:
    says = "The tenant's data may be held and opened there and nowhere else."
    return Effect("territories", _list(before), _list(after), says)


def _withdrawal(one: Standing) -> Effect:
    return Effect(
        f"placements.{one.placement}",
        one.host,
        None,
        f"The tenant is withdrawn from {one.host} in {one.territory}: {one.machines} machines of "
        f"{one.groups} groups are protected no longer. Their disks and journals stay.",
        groups=one.groups,
        machines=one.machines,
    )


def _lost(before: Policy, after: Policy, spots: Sequence[Spot], says: str) -> list[Effect]:
    return [
        Effect(f"{one.kind}.{one.name}", one.territory, None, says, groups=one.groups)
        for one in spots
        if may_hold(before.territories, one.territory)
        and not may_hold(after.territories, one.territory)
    ]


def _nowhere(what: str) -> Effect:
    return Effect(
        f"no {what}",
        None,
        None,
        f"No {what} is in a permitted territory: replication stops until one is. Hosts go on "
        "recording; what does not fit is compared and sent then.",
    )
