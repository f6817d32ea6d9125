"""Every table of the control plane."""

from app.models.base import Base, Resource, TenantOwned
from app.models.events import AuditEntry, Event, TenantLedger
from app.models.hosts import Host, JoinToken, TenantAuthority
from app.models.identity import ApiKey, IdempotencyRecord, ProviderKey, User, UserSession
from app.models.sites import Site
from app.models.tenants import Tenant

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Base",
    "Event",
    "Host",
    "IdempotencyRecord",
    "JoinToken",
    "ProviderKey",
    "Resource",
    "Site",
    "Tenant",
    "TenantAuthority",
    "TenantLedger",
    "TenantOwned",
    "User",
    "UserSession",
]
