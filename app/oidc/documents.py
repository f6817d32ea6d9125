"""What issuers publish of themselves: fetched through the guard, kept for a while.

An unknown key makes one new look at an issuer's keys, and no more than one in a while, so that
nobody has us call an issuer as often as they like.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from app.kit.problems import Problem
from app.oidc.identity import BadIdToken
from app.outbound.policy import OutboundPolicy, OutboundRefused, Resolver, check_url, resolve

if TYPE_CHECKING:
    from app.oidc.tokens import PublicKey
    from app.outbound.guard import GuardedTransport

_KEPT_SECONDS = 600.0
#: An issuer that failed is not called again at once, whoever asks.
_FAILED_SECONDS = 5.0
#: Between two looks at an issuer's keys because of a key that is not known.
KEYS_SECONDS_MIN = 60.0
CALL_SECONDS_MAX = 10.0
_ISSUERS_MAX = 1_000
_WELL_KNOWN = "/.well-known/openid-configuration"


class IssuerFailed(Exception):
    """The issuer did not answer as it should; says how, with nothing of the answer."""


@dataclass(frozen=True)
class IssuerDocument:
    """Where an issuer is to be asked."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None


@dataclass
class _Known:
    """What is known of one issuer."""

    document: IssuerDocument | None = None
    keys: list[PublicKey] = field(default_factory=list)
    document_at: float = float("-inf")
    keys_at: float = float("-inf")
    failed_at: float = float("-inf")
    failure: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Issuers:
    """The issuers that this process knows, a tenant's apart from another's."""

    def __init__(
        self,
        policy: OutboundPolicy = OutboundPolicy(),  # noqa: B008 - frozen
        resolver: Resolver = resolve,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy, self._resolver, self._now = policy, resolver, monotonic
        self._known: dict[tuple[UUID, str], _Known] = {}

    def transport(self) -> GuardedTransport:
        """For one conversation with an issuer."""
        from app.outbound.guard import GuardedTransport

        return GuardedTransport(self.policy, self._resolver)

    async def document(self, tenant_id: UUID, issuer: str) -> IssuerDocument:
        """What the issuer says of itself; IssuerFailed."""
        known = self._of(tenant_id, issuer)
        async with known.lock:
            if known.document is None or self._now() - known.document_at > _KEPT_SECONDS:
                told = await self._fetch(known, issuer.rstrip("/") + _WELL_KNOWN)
                known.document = _read_document(told, issuer, self.policy)
                known.document_at = self._now()
            return known.document

    async def keys(
        self, tenant_id: UUID, document: IssuerDocument, *, is_missing: bool = False
    ) -> list[PublicKey]:
        """The issuer's keys. `is_missing`: one was not among them. IssuerFailed."""
        from app.oidc.tokens import read_keys

        known = self._of(tenant_id, document.issuer)
        async with known.lock:
            age = self._now() - known.keys_at
            if age > (KEYS_SECONDS_MIN if is_missing else _KEPT_SECONDS):
                known.keys_at = self._now()
                try:
                    known.keys = read_keys(await self._fetch(known, document.jwks_uri))
                except BadIdToken as error:
                    raise IssuerFailed(str(error)) from None
            return known.keys

    def _of(self, tenant_id: UUID, issuer: str) -> _Known:
        key = (tenant_id, issuer)
        known = self._known.pop(key, None) or _Known()
        self._known[key] = known  # the newest is last
        if len(self._known) > _ISSUERS_MAX:
            del self._known[next(iter(self._known))]
        return known

    async def _fetch(self, known: _Known, url: str) -> Any:
        from app.oidc.fetching import fetch_json

        if self._now() - known.failed_at < _FAILED_SECONDS:
            raise IssuerFailed(known.failure)
        try:
            return await fetch_json(self.transport(), url)
        except IssuerFailed as error:
            known.failed_at, known.failure = self._now(), str(error)
            raise


def _read_document(told: Any, issuer: str, policy: OutboundPolicy) -> IssuerDocument:
    if not isinstance(told, dict) or told.get("issuer") != issuer:
        raise IssuerFailed("Its document is of another issuer.")
    found: dict[str, Any] = {}
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
        found[name] = told.get(name)
        if found[name] is None and name == "userinfo_endpoint":
            continue
        try:
            check_url(str(found[name]), policy)
        except OutboundRefused:
            raise IssuerFailed(f"Its {name} is missing or is not https.") from None
    return IssuerDocument(issuer, **found)


def issuer_unavailable(error: IssuerFailed) -> Problem:
    """For who begins a login: nothing is known of who that is yet."""
    return Problem(
        "issuer_unavailable",
        f"The tenant's issuer cannot be used now. {error}",
        hint="Try again; if it stays so, an administrator should check the issuer's settings.",
    )
