"""What the API says of tenants."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Name, Output, Page
from app.sites.schemas import Territory


class Plan(Input):
    """What a tenant may use."""

    vpgs_max: int = Field(default=100, ge=0, le=1_000_000)
    machines_max: int = Field(default=100, ge=0, le=1_000_000)
    disks_max: int = Field(default=100, ge=0, le=1_000_000)
    protected_bytes_max: int | None = Field(
        default=None, ge=0, description="The sizes of all protected disks. None: no limit."
    )
    stream_bytes_per_second_max: int | None = Field(
        default=None,
        ge=65_536,
        le=1 << 40,
        description="What all hosts together may send to one data node. None: as much as comes.",
    )
    retained_bytes_max: int | None = Field(
        default=None,
        ge=0,
        description="What all journals may take in the store. Beyond it nothing new is protected; "
        "what is protected stays so, with its history. None: no limit.",
    )
    territories: list[Territory] | None = Field(
        default=None, description="Where the tenant's data may be held and opened. None: anywhere."
    )
    destroy_delay_hours: int = Field(
        default=24, ge=1, le=720, description="How long what destroys history can be cancelled."
    )
    rpo_seconds_min: int = Field(default=5, ge=1, le=86_400)


class TenantInput(Input):
    """A tenant as the provider makes it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "Acme Ltd", "plan": {"disks_max": 20}}}
    )

    name: Name
    plan: Plan = Plan()


class StandingInput(Input):
    """Why a tenant is suspended, or let in again."""

    model_config = ConfigDict(json_schema_extra={"example": {"reason": "The contract has ended."}})

    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = Field(
        description="Kept in the tenant's audit log and in the provider's."
    )


class TenantOutput(Output):
    """A customer organisation."""

    id: str
    name: str
    state: str
    plan: Plan
    created_at: datetime


class TenantCreated(TenantOutput):
    """A new tenant, with the token of its first administrator, shown this once."""

    token: str = Field(description="An API key of an administrator. It is not kept.")


class TenantPage(Page[TenantOutput]):
    """Tenants, by their age."""
