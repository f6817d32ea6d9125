"""Calls of the API with typed arguments and answers.

Every change carries an Idempotency-Key, so that a call whose answer was lost is repeated without a
second effect.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, TypeAdapter

from app.client.profiles import Profile
from app.datanodes.schemas import (
    DataNodeInput,
    DataNodeJoin,
    DataNodeOutput,
    DataNodePage,
    JournalStoreInput,
    JournalStoreOutput,
    JournalStorePage,
)
from app.events.schemas import AuditPage, AuditVerification, EventPage
from app.hosts.schemas import (
    HostDetail,
    HostOutput,
    JoinTokenCreated,
    JoinTokenInput,
    JoinTokenOutput,
)
from app.http.schemas import Page
from app.identity.schemas import ApiKeyCreated, ApiKeyInput, ApiKeyOutput
from app.keys.schemas import RecoveryKeyInput, RecoveryKeyOutput
from app.operations.schemas import OperationOutput
from app.restores.schemas import RestoreInput
from app.sites.schemas import SiteInput, SiteOutput
from app.tenants.schemas import Plan, StandingInput, TenantCreated, TenantInput, TenantOutput
from app.usage.schemas import TenantsUsageOutput, UsageOutput
from host_agent.wire.errors import HoldfastError

M = TypeVar("M", bound=BaseModel)

_SECONDS_MAX = 30.0
_ATTEMPTS_MAX = 4
_PAGE = 200


class ServiceAway(HoldfastError):
    """The service does not answer, or not as itself."""

    code = "service_away"


class Refused(HoldfastError):
    """The service answered with a problem; `code` is the problem's."""

    def __init__(self, document: Mapping[str, Any], status: int) -> None:
        super().__init__(
            str(document.get("detail") or f"The service answered with status {status}."),
            hint=str(document.get("hint") or ""),
            retryable=bool(document.get("retryable")),
        )
        self.code = str(document.get("code") or "refused")
        self.fields = document.get("errors")
        if self.fields:
            named = "; ".join(f"{one['field']}: {one['message']}" for one in self.fields)
            self.message = f"{self.message} {named}"


class Client:
    """A connection to one service as one principal. Closed with its block."""

    def __init__(self, profile: Profile) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(cadata=profile.root)
        except ssl.SSLError:
            raise ServiceAway(
                f"The root certificate of the profile {profile.name} cannot be read.",
                hint="Add the profile anew.",
            ) from None
        # Whoever is about to log in has none yet.
        headers = {"authorization": f"Bearer {profile.token}"} if profile.token else {}
        self._profile = profile
        self._http = httpx2.Client(
            base_url=profile.api,
            headers=headers,
            verify=context,
            timeout=_SECONDS_MAX,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    # --- tenants

    def create_tenant(self, wanted: TenantInput) -> TenantCreated:
        """For the provider's staff: a tenant and its first administrator's token."""
        return self._send("POST", "/v1/provider/tenants", TenantCreated, wanted)

    def list_tenants(self) -> Iterator[TenantOutput]:
        """For the provider's staff: all of them, page by page."""
        return self._pages("/v1/provider/tenants", TenantOutput)

    def get_provider_tenant(self, tenant_id: str) -> TenantOutput:
        """For the provider's staff: one of them."""
        return self._send("GET", f"/v1/provider/tenants/{tenant_id}", TenantOutput)

    def change_plan(self, tenant_id: str, change: Callable[[Plan], Plan]) -> TenantOutput:
        """For the provider's staff: a tenant's plan, changed from what it is now."""
        path = f"/v1/provider/tenants/{tenant_id}"
        now = self._call("GET", path)
        wanted = change(TenantOutput.model_validate_json(now.content).plan)
        headers = {"if-match": now.headers["etag"]}
        answer = self._call("PUT", f"{path}/plan", wanted, headers=headers)
        return TenantOutput.model_validate_json(answer.content)

    def suspend_tenant(self, tenant_id: str, reason: str) -> TenantOutput:
        """For the provider's staff: nobody of it gets in; replication goes on."""
        path = f"/v1/provider/tenants/{tenant_id}:suspend"
        return self._send("POST", path, TenantOutput, StandingInput(reason=reason))

    def resume_tenant(self, tenant_id: str, reason: str) -> TenantOutput:
        """For the provider's staff: the end of a suspension."""
        path = f"/v1/provider/tenants/{tenant_id}:resume"
        return self._send("POST", path, TenantOutput, StandingInput(reason=reason))

    def get_tenant(self) -> TenantOutput:
        """The caller's own."""
        return self._send("GET", "/v1/tenant", TenantOutput)

    def read_usage(self, since: datetime | None, until: datetime | None) -> UsageOutput:
        """The tenant's usage, hour by hour."""
        return self._send("GET", "/v1/usage", UsageOutput, query=_span(since, until))

    def read_tenants_usage(
        self, since: datetime | None, until: datetime | None
    ) -> TenantsUsageOutput:
        """For the provider's staff: each tenant's sums."""
        path = "/v1/provider/usage"
        return self._send("GET", path, TenantsUsageOutput, query=_span(since, until))

    # --- data nodes and stores, for the provider's staff

    def list_data_nodes(self) -> list[DataNodeOutput]:
        """All of them, revoked ones too."""
        return self._send("GET", "/v1/provider/data-nodes", DataNodePage).items

    def create_data_node(self, wanted: DataNodeInput) -> DataNodeJoin:
        """One that has still to join, with its token."""
        return self._send("POST", "/v1/provider/data-nodes", DataNodeJoin, wanted)

    def invite_data_node(self, node_id: str) -> DataNodeJoin:
        """A new token, in place of the one before."""
        return self._send("POST", f"/v1/provider/data-nodes/{node_id}:invite", DataNodeJoin)

    def change_data_node(self, node_id: str, verb: str) -> DataNodeOutput:
        """`drain`, `undrain` or `revoke` it."""
        return self._send("POST", f"/v1/provider/data-nodes/{node_id}:{verb}", DataNodeOutput)

    def list_journal_stores(self) -> list[JournalStoreOutput]:
        """All of them, without credentials."""
        return self._send("GET", "/v1/provider/journal-stores", JournalStorePage).items

    def create_journal_store(self, wanted: JournalStoreInput) -> JournalStoreOutput:
        """A new one."""
        return self._send("POST", "/v1/provider/journal-stores", JournalStoreOutput, wanted)

    # --- sites

    def list_sites(self) -> Iterator[SiteOutput]:
        """All of them, page by page."""
        return self._pages("/v1/sites", SiteOutput)

    def create_site(self, wanted: SiteInput) -> SiteOutput:
        """A new one."""
        return self._send("POST", "/v1/sites", SiteOutput, wanted)

    def delete_site(self, site_id: str) -> None:
        """Remove it as it is now."""
        version = self._call("GET", f"/v1/sites/{site_id}").headers["etag"]
        self._call("DELETE", f"/v1/sites/{site_id}", headers={"if-match": version})

    # --- hosts

    def list_hosts(self) -> Iterator[HostDetail]:
        """All of them, revoked ones too."""
        return self._pages("/v1/hosts", HostDetail)

    def get_host(self, host_id: str) -> HostDetail:
        """One of them, and how it is."""
        return self._send("GET", f"/v1/hosts/{host_id}", HostDetail)

    def revoke_host(self, host_id: str) -> HostOutput:
        """Shut it out at once and for good."""
        return self._send("POST", f"/v1/hosts/{host_id}:revoke", HostOutput)

    def list_join_tokens(self) -> Iterator[JoinTokenOutput]:
        """All of them, used ones too."""
        return self._pages("/v1/join-tokens", JoinTokenOutput)

    def create_join_token(self, wanted: JoinTokenInput) -> JoinTokenCreated:
        """A right to join, with its token."""
        return self._send("POST", "/v1/join-tokens", JoinTokenCreated, wanted)

    # --- API keys

    def list_api_keys(self) -> Iterator[ApiKeyOutput]:
        """All of them, revoked ones too."""
        return self._pages("/v1/api-keys", ApiKeyOutput)

    def create_api_key(self, wanted: ApiKeyInput) -> ApiKeyCreated:
        """A new one, with its token."""
        return self._send("POST", "/v1/api-keys", ApiKeyCreated, wanted)

    def revoke_api_key(self, api_key_id: str) -> ApiKeyOutput:
        """End it at once and for good."""
        return self._send("POST", f"/v1/api-keys/{api_key_id}:revoke", ApiKeyOutput)

    # --- keys and restores

    def export_recovery_key(self, wanted: RecoveryKeyInput) -> RecoveryKeyOutput:
        """The tenant's key, sealed to the key in the request."""
        return self._send("POST", "/v1/recovery-key:export", RecoveryKeyOutput, wanted)

    def restore_vpg(self, vpg_id: str, wanted: RestoreInput) -> OperationOutput:
        """Have a host bring a moment of a group back."""
        return self._send("POST", f"/v1/vpgs/{vpg_id}:restore", OperationOutput, wanted)

    # --- what happened

    def read_events(self, after: int = 0) -> EventPage:
        """The next events after a place."""
        query = {"after": after, "limit": _PAGE}
        return self._send("GET", "/v1/events", EventPage, query=query)

    def read_audit(self, after: int = 0) -> AuditPage:
        """The next audit entries after a place."""
        query = {"after": after, "limit": _PAGE}
        return self._send("GET", "/v1/audit", AuditPage, query=query)

    def verify_audit(self) -> AuditVerification:
        """Whether the chain of the whole log holds."""
        return self._send("GET", "/v1/audit:verify", AuditVerification)

    # --- how

    def _pages(
        self, path: str, model: type[M], filters: Mapping[str, Any] | None = None
    ) -> Iterator[M]:
        adapter: TypeAdapter[Page[M]] = TypeAdapter(Page[model])  # type: ignore[valid-type]
        given = {name: value for name, value in (filters or {}).items() if value is not None}
        cursor: str | None = None
        while True:
            query = {**given, "limit": _PAGE} | ({"cursor": cursor} if cursor else {})
            page = adapter.validate_json(self._call("GET", path, query=query).content)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def _send(
        self,
        method: str,
        path: str,
        model: type[M],
        body: BaseModel | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> M:
        return model.model_validate_json(self._call(method, path, body, query).content)

    def _change(self, method: str, path: str, body: BaseModel | None = None) -> httpx2.Response:
        """Change what is at this path, as it is now."""
        version = self._call("GET", path).headers["etag"]
        return self._call(method, path, body, headers={"if-match": version})

    def _call(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """One call, repeated where that can help; Refused or ServiceAway."""
        sent = {"content-type": "application/json", **(headers or {})}
        if method != "GET":
            sent["idempotency-key"] = secrets.token_hex(16)
        # What is not valid goes out as it is: the service names the fields.
        content = None if body is None else body.model_dump_json(warnings=False)
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            try:
                answer = self._http.request(
                    method, path, content=content, params=query, headers=sent
                )
            except httpx2.HTTPError as error:
                if attempt == _ATTEMPTS_MAX or isinstance(error, httpx2.UnsupportedProtocol):
                    raise self._away(error) from None
            else:
                problem = _problem_of(answer)
                if problem is None:
                    return answer
                if not problem.retryable or attempt == _ATTEMPTS_MAX:
                    raise problem
            time.sleep(0.2 * 2**attempt)
        raise AssertionError

    def _away(self, error: Exception) -> ServiceAway:
        return ServiceAway(
            f"{self._profile.api} does not answer: {str(error) or type(error).__name__}.",
            hint="Check that the service runs and that the profile's address is right.",
            retryable=True,
        )


def _span(since: datetime | None, until: datetime | None) -> dict[str, str]:
    given = {"since": since, "until": until}
    return {name: one.isoformat() for name, one in given.items() if one is not None}


def _problem_of(answer: httpx2.Response) -> Refused | None:
    if answer.status_code < 400:
        return None
    try:
        document = answer.json()
    except ValueError:
        document = {}
    return Refused(document if isinstance(document, dict) else {}, answer.status_code)
