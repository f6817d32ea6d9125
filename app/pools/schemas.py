"""What the API says of pools: as the provider makes them, and as a tenant sees them."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict, Field

from app.hosts.schemas import JOIN_SECONDS_MAX, HostOutput
from app.http.schemas import Input, Name, Output, Text
from app.sites.schemas import SiteOutput


class ProviderPoolInput(Input):
    """A pool as it is made."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "Zürich cloud",
                "site_id": "site_01kb0000000000000000000000",
                "description": "",
            }
        }
    )

    name: Name = Field(description="As tenants see it.")
    site_id: str = Field(description="A site of the provider's: its territory is the pool's.")
    description: Text = ""


class ProviderPoolOutput(Output):
    """Hosts of the provider at one site, as the provider sees them."""

    id: str
    name: str
    description: str
    site_id: str
    created_at: datetime


class ProviderPoolPage(Output):
    """Pools, by their age."""

    items: list[ProviderPoolOutput]


class ProviderSitePage(Output):
    """The provider's sites, by their age."""

    items: list[SiteOutput]


class ProviderJoinTokenInput(Input):
    """A right to join as a host of the provider's."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "cloud-1", "pool_id": "pool_01kb0000000000000000000000"}
        }
    )

    name: Name = Field(description="The host's name, for people.")
    pool_id: str = Field(description="The pool that it belongs to.")
    lifetime_seconds: int = Field(default=JOIN_SECONDS_MAX, ge=10, le=JOIN_SECONDS_MAX)


class ProviderHostOutput(HostOutput):
    """A hypervisor machine of the provider's."""

    pool_id: str


class ApplianceOutput(Output):
    """How an agent's process on the host is: all that one enterprise may know of another's."""

    appliance: str = Field(description="The process, by the identifier that it joined with.")
    health: str = Field(examples=["up"])
    capacity_class: str = Field(examples=["small"])
    epoch: int
    time: datetime


class ProviderHostDetail(ProviderHostOutput):
    """A hypervisor machine of the provider's, and how it is."""

    appliances: list[ApplianceOutput] = Field(
        description="Its owner's process and those of the tenants that are placed on it."
    )


class ProviderHostPage(Output):
    """The provider's hosts, by their age."""

    items: list[ProviderHostOutput]


class PoolOutput(Output):
    """Machines of the provider's on which the tenant's may run."""

    id: str
    name: str
    territory: str
    site_id: str = Field(description="The site that groups name when they mean the pool.")
    machines_max: int = Field(description="So many machines may be protected there.")
    machines_used: int = Field(description="So many are.")
    machines_free: int
    is_permitted: bool = Field(
        description="Whether the tenant's data may still be in the pool's territory."
    )
    is_serving: bool = Field(description="Whether a machine can be protected there now.")
    created_at: datetime
