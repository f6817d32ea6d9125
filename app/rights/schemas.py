"""What the API says of policies and placements."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from app.http.schemas import Input, Output
from app.rights.state import PlacementState
from app.sites.schemas import Territory

POOLS_MAX = 256
Id = Annotated[str, StringConstraints(max_length=80)]


class PoolRight(Input):
    """That a tenant may use a pool."""

    pool_id: Id
    machines_max: int = Field(
        default=100, ge=0, le=1_000_000, description="So many of its machines are protected there."
    )
    host_ids: Annotated[list[Id], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="The hosts of the pool that it may use; null: all."
    )


_POLICY: dict[str, Any] = {
    "territories": ["CH", "DE"],
    "pools": [
        {
            "pool_id": "pool_01kb0000000000000000000000",
            "machines_max": 20,
            "host_ids": None,
        }
    ],
}


class PolicyInput(Input):
    """What a tenant may use, whole."""

    model_config = ConfigDict(json_schema_extra={"example": {**_POLICY}})

    territories: Annotated[list[Territory], Field(max_length=300)] | None = Field(
        description="Where its data may be held and opened; null: anywhere."
    )
    pools: list[PoolRight] = Field(max_length=POOLS_MAX)


class PolicyOutput(Output):
    """What a tenant may use."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"tenant_id": "ten_01kb0000000000000000000000", **_POLICY}}
    )

    tenant_id: str
    territories: list[str] | None
    pools: list[PoolRight]


class PlanIdInput(Input):
    """Which plan is to be done."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"plan_id": "plan_01kb0000000000000000000000"}}
    )

    plan_id: Id


class RightsEffectOutput(Output):
    """One thing that a plan would change."""

    what: str
    before: Any
    after: Any
    says: str
    is_undoable: bool = Field(description="Whether changing it back brings back all.")
    groups: int | None = Field(description="So many groups are concerned; null: none.")
    machines: int | None = Field(description="So many machines are; null: none.")


class RightsPlanOutput(Output):
    """What a change of a tenant's rights would do. It lives for 15 minutes."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "plan_01kb0000000000000000000000",
                "kind": "policy",
                "tenant_id": "ten_01kb0000000000000000000000",
                "effects": [
                    {
                        "what": "territories",
                        "before": ["CH", "DE"],
                        "after": ["CH"],
                        "says": "The tenant's data may be held and opened there and nowhere else.",
                        "is_undoable": True,
                        "groups": None,
                        "machines": None,
                    }
                ],
                "created_at": "2026-11-30T08:00:00Z",
                "expires_at": "2026-11-30T08:15:00Z",
            }
        }
    )

    id: str
    kind: str = Field(description="`policy` or `withdrawal`.")
    tenant_id: str
    effects: list[RightsEffectOutput]
    created_at: datetime
    expires_at: datetime


class WithdrawalInput(Input):
    """A withdrawal; where machines are protected on the host it is planned first."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"plan_id": "plan_01kb0000000000000000000000"}}
    )

    plan_id: Id | None = Field(default=None, description="The plan that was read.")


class PlacementInput(Input):
    """Which tenant comes onto which host."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "tenant_id": "ten_01kb0000000000000000000000",
                "host_id": "host_01kb0000000000000000000000",
            }
        }
    )

    tenant_id: Id
    host_id: Id = Field(description="A host of the provider's.")


class PlacementOutput(Output):
    """A tenant on a host of the provider's."""

    id: str
    tenant_id: str
    host_id: str = Field(description="The provider's host.")
    pool_id: str
    state: PlacementState
    failure: dict[str, Any] | None = Field(
        description="Why the host did not do what it was told last.", examples=[None]
    )
    created_at: datetime
    withdrawn_at: datetime | None


class PlacementPage(Output):
    """Placements, the newest first."""

    items: list[PlacementOutput]
