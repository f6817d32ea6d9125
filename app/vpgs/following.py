"""A host's inventory, and what it means for the groups whose disks are on it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.alerts.service import Raised, clear_alerts, raise_alerts
from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.kit.ids import Kind, show
from app.machines.inventory import InventoryChanges, read_inventory, record_inventory
from app.models import VpgDisk
from app.vpgs.assigning import raise_assignments

MISSING, UNPROTECTED = "machine.missing", "disk.unprotected"


async def receive_inventory(
    session: TenantSession, host_id: UUID, message: dict[str, Any], now: datetime
) -> list[Happening]:
    """Enter what a host has; BadInventory. Raises the host's assignment where a protected disk
    moved, and alerts for protected machines that are gone and for their new disks.
    """
    changes = await record_inventory(session, host_id, read_inventory(message), now)
    machine_ids = [machine.id for machine in changes.machines]
    found = await session.orm.execute(
        select(VpgDisk.disk_id, VpgDisk.machine_id).where(
            VpgDisk.tenant_id == session.tenant_id, VpgDisk.machine_id.in_(machine_ids)
        )
    )
    protected = {row.disk_id: row.machine_id for row in found}
    if protected.keys() & set(changes.changed_disks):
        await raise_assignments(session, [host_id], now)
    raised = _alerts(changes, set(protected.values()))
    present = {(MISSING, show(Kind.MACHINE, one.id)) for one in changes.machines if one.is_present}
    happenings = await clear_alerts(session, present, now)
    return [*changes.happenings, *happenings, *await raise_alerts(session, raised, now)]


def _alerts(changes: InventoryChanges, protected: set[UUID]) -> list[Raised]:
    gone = [
        Raised(
            MISSING,
            "error",
            show(Kind.MACHINE, machine.id),
            f"The protected machine {machine.name} is no longer on its host.",
        )
        for machine in changes.machines
        if not machine.is_present and machine.id in protected
    ]
    new = [
        Raised(
            UNPROTECTED,
            "warning",
            show(Kind.DISK, disk.id),
            f"A protected machine has a new disk {disk.name} that no group protects.",
        )
        for disk in changes.new_disks
        if disk.machine_id in protected
    ]
    return gone + new
