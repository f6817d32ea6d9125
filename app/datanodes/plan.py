"""Where a tenant's data may be, and by which doors it goes in. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.rights.territory import may_hold


@dataclass(frozen=True)
class NodePlace:
    """A data node as far as choosing goes."""

    id: UUID
    territory: str
    doors: Sequence[str]


def choose_doors(
    tenant_id: UUID, permitted: Sequence[str] | None, nodes: Sequence[NodePlace]
) -> list[str]:
    """The doors of all nodes that may serve this tenant, in the order in which its hosts try them.

    Tenants begin at different nodes, and each always at the same one.
    """
    allowed = sorted(
        (node for node in nodes if may_hold(permitted, node.territory)), key=lambda node: node.id
    )
    if not allowed:
        return []
    first = tenant_id.int % len(allowed)
    return [door for node in (*allowed[first:], *allowed[:first]) for door in node.doors]
