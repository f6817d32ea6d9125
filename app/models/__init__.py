"""Every table of the control plane."""

from app.models.alerts import Alert
from app.models.base import Base, Resource, TenantOwned
from app.models.checkpoints import Checkpoint, CheckpointPack
from app.models.datanodes import (
    DataNode,
    DataNodeAuthority,
    JournalStore,
    StoreCredential,
    TenantRecordNumber,
)
from app.models.dsm import ApplianceHealth, Command, HostStatus, Lease, ManagerAssignment
from app.models.events import AuditEntry, Event, TenantLedger
from app.models.hosts import Host, JoinToken, TenantAuthority
from app.models.identity import (
    ApiKey,
    Grant,
    IdempotencyRecord,
    Issuer,
    ProviderAct,
    ProviderEntry,
    ProviderIdempotencyRecord,
    ProviderKey,
    UsedLogin,
    User,
    UserSession,
)
from app.models.jobs import Job, UsageHour
from app.models.keys import GroupKeyRecord, RestoreDoor
from app.models.machines import Disk, HostInventory, Machine
from app.models.operations import Operation
from app.models.pools import Placement, Pool, PoolGrant, RightsPlan
from app.models.profiles import ServiceProfile
from app.models.sites import Site
from app.models.tenants import Tenant
from app.models.vpgs import HostAssignment, Vpg, VpgDisk, VpgPlan, VpgStatus

__all__ = [
    "Alert",
    "ApiKey",
    "ApplianceHealth",
    "AuditEntry",
    "Base",
    "Checkpoint",
    "CheckpointPack",
    "Command",
    "DataNode",
    "DataNodeAuthority",
    "Disk",
    "Event",
    "Grant",
    "GroupKeyRecord",
    "Host",
    "HostAssignment",
    "HostInventory",
    "HostStatus",
    "IdempotencyRecord",
    "Issuer",
    "Job",
    "JoinToken",
    "JournalStore",
    "Lease",
    "Machine",
    "ManagerAssignment",
    "Operation",
    "Placement",
    "Pool",
    "PoolGrant",
    "ProviderAct",
    "ProviderEntry",
    "ProviderIdempotencyRecord",
    "ProviderKey",
    "Resource",
    "RestoreDoor",
    "RightsPlan",
    "ServiceProfile",
    "Site",
    "StoreCredential",
    "Tenant",
    "TenantAuthority",
    "TenantLedger",
    "TenantOwned",
    "TenantRecordNumber",
    "UsageHour",
    "UsedLogin",
    "User",
    "UserSession",
    "Vpg",
    "VpgDisk",
    "VpgPlan",
    "VpgStatus",
]
