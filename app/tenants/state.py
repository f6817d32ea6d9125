"""States of a tenant, and what the provider does to them. Pure."""

from __future__ import annotations

from enum import StrEnum

from app.kit.transitions import Transitions
from app.models.tenants import TenantState


class TenantEvent(StrEnum):
    """What may happen to a tenant once it works."""

    SUSPEND = "suspend"
    RESUME = "resume"


TENANT = Transitions(
    {
        (TenantState.ACTIVE, TenantEvent.SUSPEND): TenantState.SUSPENDED,
        (TenantState.SUSPENDED, TenantEvent.RESUME): TenantState.ACTIVE,
    }
)
