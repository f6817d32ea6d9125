"""What the API says of usage."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from app.http.schemas import Output


class UsageHourOutput(Output):
    """The most that was protected in an hour."""

    hour: datetime = Field(description="When it began, UTC.")
    vpgs: int
    machines: int
    protected_bytes: int = Field(description="The sizes of the protected disks.")
    retained_bytes: int = Field(description="What the journals took in the store.")


class UsageOutput(Output):
    """A tenant's usage, hour by hour. An hour without an entry was not metered."""

    items: list[UsageHourOutput]


class TenantUsageOutput(Output):
    """A tenant's usage over a stretch of time: what a bill is made from."""

    tenant_id: str
    hours: int = Field(description="Hours that were metered.")
    machine_hours: int
    protected_byte_hours: int
    protected_bytes_max: int
    retained_byte_hours: int
    retained_bytes_max: int


class TenantsUsageOutput(Output):
    """Every tenant that used something, by age."""

    items: list[TenantUsageOutput]
