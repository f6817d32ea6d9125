"""A request's unit of work: its principal, its one transaction, what it leaves in the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from starlette.requests import Request

from app.certificates.authority import Authority
from app.database.sessions import Database, ProviderSession, TenantSession
from app.events.ledger import Act, Circumstances, Happening, Lock, write_ledger
from app.http.admission import Admission
from app.identity.principals import Principal
from app.identity.privileges import Privilege
from app.identity.scopes import Place
from app.keys.port import KeyService, NoKeys
from app.kit.clock import Clock
from app.kit.sealing import Sealer
from app.oidc.documents import Issuers


@dataclass(frozen=True)
class Tools:
    """What every request may use."""

    database: Database
    sealer: Sealer
    clock: Clock
    root: Authority
    keys: KeyService = field(default_factory=NoKeys)
    #: Where hosts find their managers, HOST:PORT, the best first.
    control_doors: tuple[str, ...] = ()
    #: None: requests are not counted.
    admission: Admission | None = None
    #: https://NAME[:PORT] by which people's browsers reach the API; empty: none does.
    public_url: str = ""
    issuers: Issuers = field(default_factory=Issuers)


@dataclass
class TenantUnit:
    """What an endpoint of a tenant's route works with."""

    session: TenantSession
    principal: Principal
    tools: Tools
    circumstances: Circumstances
    happenings: list[Happening] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    shows_secret: str | None = None
    _privilege: Privilege | None = None

    @property
    def now(self) -> datetime:
        """When the request came."""
        return self.circumstances.at

    @property
    def privilege(self) -> Privilege:
        """What the route asks for."""
        assert self._privilege is not None, "the route named no privilege"
        return self._privilege

    @property
    def is_narrowed(self) -> bool:
        """Whether some of what the caller may do does not reach over the whole tenant."""
        return bool(self.principal.narrowed)

    def require(self, privilege: Privilege) -> None:
        """The route's privilege; Problem `privilege_missing` unless the caller has it anywhere."""
        self.principal.require(privilege)
        self._privilege = privilege

    def require_at(self, site_id: UUID | None = None, vpg_id: UUID | None = None) -> None:
        """Problem `privilege_missing` unless the route's privilege reaches over this site or group,
        or (neither) over the tenant.
        """
        self.principal.require_at(self.privilege, Place(site_id, vpg_id))

    def note(self, action: str, subject: str, **details: Any) -> None:
        """An act that succeeded: an entry of the audit log and an event of the same name."""
        self.acts.append(Act(action, subject, details=details))
        self.happenings.append(Happening(action, subject, details))

    async def finish(self, lock: Lock | None = None) -> None:
        """Write the ledger, with what goes along with its lock, and commit."""
        await write_ledger(self.session, self.happenings, self.acts, self.circumstances, lock)
        await self.session.commit()


@dataclass
class ProviderUnit:
    """What an endpoint of the provider's routes works with."""

    session: ProviderSession
    principal: Principal
    tools: Tools
    circumstances: Circumstances
    shows_secret: str | None = None

    @property
    def now(self) -> datetime:
        """When the request came."""
        return self.circumstances.at

    def require(self, privilege: Privilege) -> None:
        """Problem `privilege_missing` unless the caller has it."""
        self.principal.require(privilege)


async def tenant_unit(request: Request) -> TenantUnit:
    """Dependency: the unit that the route opened for this request."""
    unit: TenantUnit = request.state.unit
    return unit


async def provider_unit(request: Request) -> ProviderUnit:
    """Dependency: the unit that the route opened for this request of the provider's staff."""
    unit: ProviderUnit = request.state.unit
    return unit
