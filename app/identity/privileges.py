"""What may be done, and the roles: sets of privileges. Pure."""

from __future__ import annotations

from enum import StrEnum


class Privilege(StrEnum):
    """One right over a tenant's objects."""

    TENANT_READ = "tenant.read"
    TENANT_WRITE = "tenant.write"
    USERS_READ = "users.read"
    USERS_WRITE = "users.write"
    API_KEYS_READ = "api_keys.read"
    API_KEYS_WRITE = "api_keys.write"
    SITES_READ = "sites.read"
    SITES_WRITE = "sites.write"
    HOSTS_READ = "hosts.read"
    HOSTS_WRITE = "hosts.write"
    MACHINES_READ = "machines.read"
    MACHINES_WRITE = "machines.write"
    VPGS_READ = "vpgs.read"
    VPGS_WRITE = "vpgs.write"
    VPGS_RESTORE = "vpgs.restore"
    JOURNALS_DESTROY = "journals.destroy"
    CHECKPOINTS_READ = "checkpoints.read"
    CHECKPOINTS_WRITE = "checkpoints.write"
    OPERATIONS_READ = "operations.read"
    OPERATIONS_WRITE = "operations.write"
    SERVICE_PROFILES_READ = "service_profiles.read"
    SERVICE_PROFILES_WRITE = "service_profiles.write"
    ALERTS_READ = "alerts.read"
    ALERTS_WRITE = "alerts.write"
    EVENTS_READ = "events.read"
    AUDIT_READ = "audit.read"
    PROVIDER_ENTRIES_READ = "provider_entries.read"
    PROVIDER_ENTRIES_WRITE = "provider_entries.write"
    KEYS_EXPORT = "keys.export"
    ISSUER_READ = "issuer.read"
    ISSUER_WRITE = "issuer.write"
    HOST_JOIN = "host.join"
    HOST_RENEW = "host.renew"
    SELF = "self"
    INVITATION_ACCEPT = "invitation.accept"
    LOGIN = "login"
    PROVIDER_TENANTS = "provider.tenants"
    PROVIDER_DATA_NODES = "provider.data_nodes"
    PROVIDER_POOLS = "provider.pools"
    PROVIDER_RIGHTS = "provider.rights"
    DATA_NODE_JOIN = "data_node.join"


class Role(StrEnum):
    """`administrator` may everything, `operator` what runs protection, `viewer` only looks."""

    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    VIEWER = "viewer"


_VIEWER = frozenset(
    {
        Privilege.SELF,
        Privilege.TENANT_READ,
        Privilege.SITES_READ,
        Privilege.HOSTS_READ,
        Privilege.MACHINES_READ,
        Privilege.VPGS_READ,
        Privilege.CHECKPOINTS_READ,
        Privilege.OPERATIONS_READ,
        Privilege.SERVICE_PROFILES_READ,
        Privilege.ALERTS_READ,
        Privilege.EVENTS_READ,
        Privilege.PROVIDER_ENTRIES_READ,
    }
)
_OPERATOR = _VIEWER | {
    Privilege.SITES_WRITE,
    Privilege.HOSTS_WRITE,
    Privilege.MACHINES_WRITE,
    Privilege.VPGS_WRITE,
    Privilege.VPGS_RESTORE,
    Privilege.CHECKPOINTS_WRITE,
    Privilege.OPERATIONS_WRITE,
    Privilege.SERVICE_PROFILES_WRITE,
    Privilege.ALERTS_WRITE,
    Privilege.USERS_READ,
    Privilege.API_KEYS_READ,
}

#: Of those who are only about to come in, and of the provider's staff: of no tenant's role.
_OF_OTHERS = {
    Privilege.HOST_JOIN,
    Privilege.HOST_RENEW,
    Privilege.INVITATION_ACCEPT,
    Privilege.LOGIN,
    Privilege.PROVIDER_TENANTS,
    Privilege.PROVIDER_DATA_NODES,
    Privilege.PROVIDER_POOLS,
    Privilege.PROVIDER_RIGHTS,
    Privilege.DATA_NODE_JOIN,
}
#: Of the tenant as such: a role over a site or a group gives none of them.
_OF_THE_TENANT = {
    Privilege.TENANT_WRITE,
    Privilege.SERVICE_PROFILES_WRITE,
    Privilege.AUDIT_READ,
    Privilege.PROVIDER_ENTRIES_READ,
    Privilege.PROVIDER_ENTRIES_WRITE,
    Privilege.KEYS_EXPORT,
    Privilege.ISSUER_READ,
    Privilege.ISSUER_WRITE,
}
#: What a role over a part of the tenant can give.
OVER_PARTS = frozenset(Privilege) - _OF_OTHERS - _OF_THE_TENANT
#: What the provider's staff may.
PROVIDER_PRIVILEGES = frozenset(
    {
        Privilege.PROVIDER_TENANTS,
        Privilege.PROVIDER_DATA_NODES,
        Privilege.PROVIDER_POOLS,
        Privilege.PROVIDER_RIGHTS,
    }
)

PRIVILEGES: dict[Role, frozenset[Privilege]] = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMINISTRATOR: frozenset(Privilege) - _OF_OTHERS,
}
