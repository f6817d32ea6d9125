"""Calls about pools: the provider's hosts, tenants' policies, placements; a tenant's own view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from app.client.client import Client
from app.hosts.schemas import JoinTokenCreated
from app.pools.schemas import (
    PoolOutput,
    ProviderHostDetail,
    ProviderHostOutput,
    ProviderHostPage,
    ProviderJoinTokenInput,
    ProviderPoolInput,
    ProviderPoolOutput,
    ProviderPoolPage,
    ProviderSitePage,
)
from app.rights.schemas import (
    PlacementInput,
    PlacementOutput,
    PlacementPage,
    PlanIdInput,
    PolicyInput,
    PolicyOutput,
    RightsPlanOutput,
    WithdrawalInput,
)
from app.rights.state import PlacementState
from app.sites.schemas import SiteInput, SiteOutput

_POLL_SECONDS = 0.5
_UNDER_WAY = (PlacementState.REQUESTED, PlacementState.WITHDRAWING)


class Rights(Client):
    """As Client, with who may use what of the provider's."""

    # --- for the provider's staff: sites, pools, hosts

    def list_provider_sites(self) -> list[SiteOutput]:
        """All of them."""
        return self._send("GET", "/v1/provider/sites", ProviderSitePage).items

    def create_provider_site(self, wanted: SiteInput) -> SiteOutput:
        """A new one."""
        return self._send("POST", "/v1/provider/sites", SiteOutput, wanted)

    def list_provider_pools(self) -> list[ProviderPoolOutput]:
        """All of them."""
        return self._send("GET", "/v1/provider/pools", ProviderPoolPage).items

    def create_provider_pool(self, wanted: ProviderPoolInput) -> ProviderPoolOutput:
        """A new one."""
        return self._send("POST", "/v1/provider/pools", ProviderPoolOutput, wanted)

    def list_provider_hosts(self) -> list[ProviderHostOutput]:
        """All of them, revoked ones too."""
        return self._send("GET", "/v1/provider/hosts", ProviderHostPage).items

    def get_provider_host(self, host_id: str) -> ProviderHostDetail:
        """One of them, and how its processes are."""
        return self._send("GET", f"/v1/provider/hosts/{host_id}", ProviderHostDetail)

    def revoke_provider_host(self, host_id: str) -> ProviderHostOutput:
        """Shut it out at once and for good, with every tenant's process on it."""
        return self._send("POST", f"/v1/provider/hosts/{host_id}:revoke", ProviderHostOutput)

    def create_provider_join_token(self, wanted: ProviderJoinTokenInput) -> JoinTokenCreated:
        """A right to join a pool, with its token."""
        return self._send("POST", "/v1/provider/join-tokens", JoinTokenCreated, wanted)

    # --- for the provider's staff: policies and placements

    def get_policy(self, tenant_id: str) -> PolicyOutput:
        """What a tenant may use."""
        return self._send("GET", f"/v1/provider/tenants/{tenant_id}/policy", PolicyOutput)

    def replace_policy(self, tenant_id: str, wanted: PolicyInput) -> PolicyOutput:
        """Give a tenant this policy, whatever it had; what takes a right away is refused."""
        answer = self._change("PUT", f"/v1/provider/tenants/{tenant_id}/policy", wanted)
        return PolicyOutput.model_validate_json(answer.content)

    def plan_policy(self, tenant_id: str, wanted: PolicyInput) -> RightsPlanOutput:
        """What a policy would take away."""
        path = f"/v1/provider/tenants/{tenant_id}/policy:plan"
        return self._send("POST", path, RightsPlanOutput, wanted)

    def apply_policy(self, tenant_id: str, plan_id: str) -> PolicyOutput:
        """Do what a plan says."""
        path = f"/v1/provider/tenants/{tenant_id}/policy:apply"
        return self._send("POST", path, PolicyOutput, PlanIdInput(plan_id=plan_id))

    def list_placements(self, **filters: Any) -> list[PlacementOutput]:
        """The newest first; filters as GET /v1/provider/placements has them."""
        query = {name: value for name, value in filters.items() if value is not None}
        return self._send("GET", "/v1/provider/placements", PlacementPage, query=query).items

    def place_tenant(self, wanted: PlacementInput) -> PlacementOutput:
        """Have a host serve a tenant."""
        return self._send("POST", "/v1/provider/placements", PlacementOutput, wanted)

    def get_placement(self, placement_id: str) -> PlacementOutput:
        """How far it is."""
        return self._send("GET", f"/v1/provider/placements/{placement_id}", PlacementOutput)

    def plan_withdrawal(self, placement_id: str) -> RightsPlanOutput:
        """What a withdrawal would end."""
        path = f"/v1/provider/placements/{placement_id}:plan"
        return self._send("POST", path, RightsPlanOutput)

    def withdraw_placement(self, placement_id: str, plan_id: str) -> PlacementOutput:
        """Shut the tenant out of the host, as the plan says."""
        path = f"/v1/provider/placements/{placement_id}:withdraw"
        return self._send("POST", path, PlacementOutput, WithdrawalInput(plan_id=plan_id))

    def follow_placement(self, placement_id: str) -> PlacementOutput:
        """Wait until it is placed, withdrawn, or the host did not do it."""
        while True:
            now = self.get_placement(placement_id)
            if now.state not in _UNDER_WAY or now.failure is not None:
                return now
            time.sleep(_POLL_SECONDS)

    # --- for a tenant

    def list_pools(self) -> Iterator[PoolOutput]:
        """Those that the tenant may use."""
        return self._pages("/v1/pools", PoolOutput)
