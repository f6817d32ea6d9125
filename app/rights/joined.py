"""A placed tenant's process has joined, or its host says what became of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.database.sessions import TenantSession
from app.identity.principals import refused
from app.models import Placement
from app.models.base import key_of
from app.rights.state import PLACEMENT, PlacementEvent, PlacementState


async def note_joined(session: TenantSession, placement_id: UUID, host_id: UUID) -> None:
    """The process is here, as this host of the tenant's; Problem `not_authenticated` if it came too
    late.
    """
    placement = await _locked(session, placement_id)
    if placement.state not in (PlacementState.REQUESTED, PlacementState.FAILED):
        raise refused()
    move(placement, PlacementEvent.JOIN)
    placement.host_id, placement.failure = host_id, None


async def note_refused(session: TenantSession, placement_id: UUID, failure: dict[str, Any]) -> None:
    """The host did not take the tenant. One that has joined meanwhile it has taken."""
    placement = await _locked(session, placement_id)
    if placement.state == PlacementState.REQUESTED:
        move(placement, PlacementEvent.FAIL)
        placement.failure = failure


async def note_failed(session: TenantSession, owner_host_id: UUID, failure: dict[str, Any]) -> None:
    """The tenant's process cannot start on that host of the provider's. It goes on trying, and what
    has joined is there.
    """
    found = await session.orm.scalars(
        select(Placement)
        .where(
            Placement.tenant_id == session.tenant_id,
            Placement.owner_host_id == owner_host_id,
            Placement.state.in_((PlacementState.REQUESTED, PlacementState.FAILED)),
        )
        .with_for_update()
    )
    for placement in found:
        if placement.state == PlacementState.REQUESTED:
            move(placement, PlacementEvent.FAIL)
        placement.failure = failure


async def note_kept(session: TenantSession, placement_id: UUID, failure: dict[str, Any]) -> None:
    """The host did not hear that the tenant goes; it is shut out all the same."""
    placement = await _locked(session, placement_id)
    if placement.state == PlacementState.WITHDRAWING:
        placement.failure = failure
        placement.version += 1


async def note_forgotten(session: TenantSession, placement_id: UUID, now: datetime) -> UUID | None:
    """The host has heard that the tenant goes. The pool that it was in, if that was news."""
    placement = await _locked(session, placement_id)
    if placement.state != PlacementState.WITHDRAWING:
        return None
    move(placement, PlacementEvent.FORGET)
    placement.withdrawn_at, placement.failure = now, None
    return placement.pool_id


def move(placement: Placement, event: PlacementEvent) -> None:
    """The placement's next state; IllegalTransition."""
    placement.state = PLACEMENT.after(PlacementState(placement.state), event)
    placement.version += 1


async def _locked(session: TenantSession, placement_id: UUID) -> Placement:
    return await session.orm.get_one(
        Placement,
        key_of(session.tenant_id, placement_id),
        with_for_update=True,
        populate_existing=True,
    )
