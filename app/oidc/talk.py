"""Who talks to which issuer, and what it said of somebody's groups."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from app.kit.sealing import Sealer
from app.models import Issuer
from app.oidc.documents import IssuerDocument, Issuers
from app.oidc.identity import Identity

_GROUPS_MAX = 1_000


@dataclass(frozen=True)
class Talk:
    """A conversation with one tenant's issuer. `redirect_uri` names the tenant."""

    issuers: Issuers
    sealer: Sealer
    issuer: Issuer
    document: IssuerDocument
    redirect_uri: str

    @property
    def tenant_id(self) -> UUID:
        """Whose issuer it is."""
        return self.issuer.tenant_id


def groups_of(issuer: Issuer, identity: Identity) -> frozenset[str]:
    """The groups that the issuer says somebody is in."""
    told = identity.claims.get(issuer.groups_claim)
    listed = [told] if isinstance(told, str) else told if isinstance(told, list) else []
    return frozenset(name for name in listed[:_GROUPS_MAX] if isinstance(name, str))
