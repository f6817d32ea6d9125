"""A host's inventory becomes rows: what is new, what changed, what is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import select

from app.database.sessions import TenantSession
from app.events.ledger import Happening
from app.kit.ids import Kind, new_uuid, show
from app.machines.schemas import Inventory, ReportedDisk, ReportedMachine
from app.models import Disk, HostInventory, Machine
from host_agent.wire.errors import HoldfastError


class BadInventory(HoldfastError):
    """What a host sent is no inventory."""

    code = "bad_inventory"


@dataclass
class InventoryChanges:
    """What an inventory changed, for those who follow machines."""

    happenings: list[Happening] = field(default_factory=list)
    changed_disks: list[UUID] = field(default_factory=list)
    new_disks: list[Disk] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)


def read_inventory(message: Mapping[str, Any]) -> Inventory:
    """The inventory of a host's message; BadInventory. Names are unique in it."""
    machines = message.get("machines")
    shaped = [_shape(machine) for machine in machines] if isinstance(machines, list) else machines
    try:
        found = Inventory.model_validate({"machines": shaped, "digest": message.get("digest")})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadInventory(f"The host's inventory is not valid at {where}.") from None
    for names in (_names(found.machines), *(_names(one.disks) for one in found.machines)):
        if len(set(names)) != len(names):
            raise BadInventory("The host's inventory has a name twice.")
    return found


def _names(things: list[ReportedMachine] | list[ReportedDisk]) -> list[str]:
    return [thing.name for thing in things]


def _shape(machine: Any) -> Any:
    """A machine with its disks' places as sources: hosts write them flat."""
    if not isinstance(machine, dict) or not isinstance(machine.get("disks"), list):
        return machine
    return {**machine, "disks": [_shape_disk(disk) for disk in machine["disks"]]}


def _shape_disk(disk: Any) -> Any:
    if not isinstance(disk, dict) or "source" in disk:
        return disk
    if "path" in disk:
        source = {"kind": "path", "path": disk["path"]}
    else:
        source = {"kind": "qmp", "socket": disk.get("qmp"), "node": disk.get("node")}
    return {"name": disk.get("name"), "bytes": disk.get("bytes"), "source": source}


async def record_inventory(
    session: TenantSession, host_id: UUID, inventory: Inventory, now: datetime
) -> InventoryChanges:
    """Enter what a host has; a constant number of queries. What is not in it stays, marked."""
    recorder = await _Recorder.load(session, host_id, now)
    for reported in inventory.machines:
        recorder.enter(reported)
    await session.orm.flush()  # a disk's row names its machine's
    for reported in inventory.machines:
        recorder.enter_disks(reported)
    recorder.mark_absent({reported.name for reported in inventory.machines})
    kept = await session.orm.get(
        HostInventory, {"tenant_id": session.tenant_id, "host_id": host_id}
    )
    if kept is None:
        kept = HostInventory(tenant_id=session.tenant_id, host_id=host_id)
        session.orm.add(kept)
    kept.digest, kept.reported_at = inventory.digest, now
    await session.orm.flush()
    return recorder.changes


class _Recorder:
    """The host's rows by name, and what is being changed of them."""

    def __init__(self, session: TenantSession, host_id: UUID, now: datetime) -> None:
        self._session, self._host_id, self._now = session, host_id, now
        self._machines: dict[str, Machine] = {}
        self._disks: dict[UUID, dict[str, Disk]] = {}
        self.changes = InventoryChanges()

    @classmethod
    async def load(cls, session: TenantSession, host_id: UUID, now: datetime) -> _Recorder:
        made = cls(session, host_id, now)
        machines = await session.orm.scalars(
            select(Machine)
            .where(Machine.tenant_id == session.tenant_id, Machine.host_id == host_id)
            .with_for_update()
        )
        made._machines = {machine.name: machine for machine in machines}
        disks = await session.orm.scalars(
            select(Disk)
            .join(
                Machine,
                (Machine.tenant_id == Disk.tenant_id) & (Machine.id == Disk.machine_id),
            )
            .where(Disk.tenant_id == session.tenant_id, Machine.host_id == host_id)
        )
        for disk in disks:
            made._disks.setdefault(disk.machine_id, {})[disk.name] = disk
        return made

    def enter(self, reported: ReportedMachine) -> None:
        machine = self._machines.get(reported.name)
        if machine is None:
            machine = self._add_machine(reported)
        if not machine.is_present:
            self._happened("machines.returned", machine)
        if (machine.is_present, machine.uuid) != (True, reported.uuid):
            machine.is_present, machine.uuid = True, reported.uuid
            machine.version += 1
        machine.seen_at = self._now
        self.changes.machines.append(machine)

    def enter_disks(self, reported: ReportedMachine) -> None:
        machine = self._machines[reported.name]
        known = self._disks.get(machine.id, {})
        for disk in reported.disks:
            self._enter_disk(machine, known.get(disk.name), disk)
        for name in known.keys() - {disk.name for disk in reported.disks}:
            known[name].is_present = False

    def _add_machine(self, reported: ReportedMachine) -> Machine:
        machine = Machine(
            tenant_id=self._session.tenant_id,
            id=new_uuid(self._now),
            created_at=self._now,
            version=1,
            host_id=self._host_id,
            name=reported.name,
            uuid=reported.uuid,
            labels={},
            is_present=True,
        )
        self._session.orm.add(machine)
        self._machines[reported.name] = machine
        self._happened("machines.discovered", machine)
        return machine

    def _enter_disk(self, machine: Machine, disk: Disk | None, reported: ReportedDisk) -> None:
        source = reported.source.model_dump()
        if disk is None:
            disk = Disk(
                tenant_id=self._session.tenant_id,
                id=new_uuid(self._now),
                created_at=self._now,
                version=1,
                machine_id=machine.id,
                name=reported.name,
            )
            self._session.orm.add(disk)
            self.changes.new_disks.append(disk)
        elif disk.source != source or not disk.is_present:
            self.changes.changed_disks.append(disk.id)
            disk.version += 1
        disk.source, disk.bytes, disk.is_present = source, reported.bytes, True

    def mark_absent(self, reported: set[str]) -> None:
        for name in self._machines.keys() - reported:
            machine = self._machines[name]
            if machine.is_present:
                machine.is_present = False
                machine.version += 1
                self._happened("machines.gone", machine)
            self.changes.machines.append(machine)

    def _happened(self, kind: str, machine: Machine) -> None:
        subject = show(Kind.MACHINE, machine.id)
        self.changes.happenings.append(Happening(kind, subject, {"name": machine.name}))


async def is_known(session: TenantSession, host_id: UUID, digest: str) -> bool:
    """Whether this inventory was entered before, so that it need not be sent."""
    kept = await session.orm.get(
        HostInventory, {"tenant_id": session.tenant_id, "host_id": host_id}
    )
    return kept is not None and kept.digest == digest
