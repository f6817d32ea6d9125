"""What a provider's host is told of placements: the order as it lies in an operation, its token
sealed; as it goes out; and what comes of it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.database.sessions import Database
from app.events.ledger import Circumstances, Happening, write_ledger
from app.kit.ids import BadId, Kind, parse, show
from app.kit.sealing import Sealer
from app.operations.service import ORDER
from app.rights.joined import note_failed, note_forgotten, note_kept, note_refused
from host_agent.wire import control
from host_agent.wire.errors import HoldfastError

_CONTEXT = "operations.input.token"
#: The host's own word for a tenant that it does not have: it need not forget it.
_UNKNOWN = "unknown_tenant"


@dataclass(frozen=True)
class PlacementOrder:
    """Whose placement an order is about."""

    tenant: str
    placement: str

    @property
    def tenant_id(self) -> UUID:
        """The tenant's key."""
        return parse(Kind.TENANT, self.tenant)

    @property
    def placement_id(self) -> UUID:
        """The placement's key."""
        return parse(Kind.PLACEMENT, self.placement)


def order_of(given: Mapping[str, Any]) -> PlacementOrder:
    """The order in an operation's input."""
    return PlacementOrder(given["tenant"], given["placement"])


def placing_input(
    order: PlacementOrder, token: str, doors: Sequence[str], sealer: Sealer
) -> dict[str, Any]:
    """An operation's input that has a host place the tenant with this join token."""
    sealed = sealer.seal(token.encode(), _CONTEXT, order.placement)
    told = {"token": base64.b64encode(sealed).decode(), "doors": list(doors)}
    return {**vars(order), ORDER: told}


def place_body(given: Mapping[str, Any], sealer: Sealer) -> control.Place:
    """The command of such an input."""
    order, told = order_of(given), given[ORDER]
    token = sealer.open(base64.b64decode(told["token"]), _CONTEXT, order.placement)
    return control.Place(order.tenant, token.decode(), told["doors"])


async def settle_placing(
    database: Database, order: PlacementOrder, error: HoldfastError | None
) -> None:
    """The host has answered, or will not. That the tenant is there its process says by joining."""
    if error is not None:
        async with database.tenant(order.tenant_id) as session:
            await note_refused(session, order.placement_id, _said(error))
            await session.commit()


async def settle_withdrawal(
    database: Database, order: PlacementOrder, error: HoldfastError | None, now: datetime
) -> None:
    """The host has answered, or will not: enter it in the tenant's scope. May be repeated."""
    async with database.tenant(order.tenant_id) as session:
        key = order.placement_id
        if error is not None and error.code != _UNKNOWN:
            await note_kept(session, key, _said(error))
        elif pool := await note_forgotten(session, key, now):
            happened = Happening("pools.left", show(Kind.POOL, pool))
            await write_ledger(session, [happened], [], Circumstances("dsm", "", "", now))
        await session.commit()


async def settle_failure(database: Database, host_id: UUID, event: control.Event) -> None:
    """A host of the provider's tells that a placed tenant's process cannot start there; of a tenant
    that is not placed on it it can tell nothing.
    """
    try:
        tenant_id = parse(Kind.TENANT, event.subject)
    except BadId:
        return
    said = {name: str(event.data.get(name) or "") for name in ("code", "message", "hint")}
    async with database.tenant(tenant_id) as session:
        await note_failed(session, host_id, said)
        await session.commit()


def _said(error: HoldfastError) -> dict[str, Any]:
    said = error.as_dict()
    return {"code": said.pop("error"), **said}
