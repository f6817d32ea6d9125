"""A data node: which tenants it serves, by which records, and who gets which connection."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from host_agent.wire.errors import WireError
from host_agent.wire.nodecontrol import StreamFacts, TenantRecord
from host_agent.wire.serving import ServingRecord, decode_record
from workers.ingest.log import Log
from workers.supervisor.channel import Message
from workers.supervisor.kinds import ROUTER, SERVICES
from workers.supervisor.processes import Process, Processes
from workers.supervisor.record import (
    Kept,
    KeptIdentity,
    RecordStore,
    RecordUnreadable,
    supersede,
    with_identity,
    with_probed,
)

#: Connections of one tenant's service that wait for its process to be there.
_EARLY_MAX = 64

Key = tuple[str, str]


@dataclass
class Slot:
    """A tenant's service: its process and what waits for it."""

    process: Process
    early: list[tuple[socket.socket, str]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    facts: dict[tuple[str, str], StreamFacts] = field(default_factory=dict)


class Node:
    """Everything but the control connection. Runs on one event loop."""

    def __init__(self, records: RecordStore, processes: Processes, log: Log) -> None:
        self._store = records
        self._processes = processes
        self._log = log
        self._kept: dict[str, Kept] = {}
        self._unreadable: list[str] = []
        self._slots: dict[Key, Slot] = {}
        self._router: Process | None = None
        self._router_status: dict[str, Any] = {}
        self._refused: Counter[str] = Counter()
        self._leaving: set[asyncio.Task[None]] = set()
        self.on_facts: Callable[[list[StreamFacts]], None] = lambda _: None
        self.on_wanted: Callable[[], None] = lambda: None

    def load(self) -> None:
        """What was kept, from the node's disk. Blocks."""
        for found in self._store.load():
            if isinstance(found, RecordUnreadable):
                self._unreadable.append(found.message)
                self._log.warning(found.code, message=found)
            else:
                self._kept[found.record.tenant] = found

    def start(self, listener: socket.socket) -> None:
        """Listen. The listener stays ours: a router that dies loses nobody who waits in it."""

        def begin(router: Process) -> None:
            router.send({"type": "listen"}, listener.dup())

        self._router = self._processes.add(Process(ROUTER, ROUTER, begin, self._on_router))

    # --- records

    def versions(self) -> dict[str, int]:
        """Which version of each tenant's record is held."""
        return {tenant: kept.record.version for tenant, kept in self._kept.items()}

    def take_record(self, told: TenantRecord) -> None:
        """Keep it if it is newer, and tell the tenant's processes. Blocks for the disk."""
        if bytes(told.record) == b"null":
            self._retire(told.tenant)
            return
        try:
            record = decode_record(told.record)
        except WireError as error:
            self._log.warning("record_refused", tenant=told.tenant, message=error)
        else:
            self._take_record(record)

    def serve_only(self, tenants: list[str] | None) -> None:
        """These tenants and no others; None: it stays as it was."""
        if tenants is not None:
            for tenant in self._kept.keys() - set(tenants):
                self._retire(tenant)

    def _keep(self, kept: Kept) -> None:
        """What the manager says holds even if the disk refuses it: a host may be shut out by it."""
        self._kept[kept.record.tenant] = kept
        try:
            self._store.save(kept)
        except OSError as error:
            self._log.warning("record_not_kept", tenant=kept.record.tenant, message=error.strerror)

    def _take_record(self, record: ServingRecord) -> None:
        held = self._kept.get(record.tenant)
        kept = supersede(held, record)
        if kept is None:
            return
        self._keep(kept)
        self._log.info("record_taken", tenant=record.tenant, version=record.version)
        is_other_store = held is not None and held.record.store != record.store
        for service in SERVICES:
            slot = self._slots.get((record.tenant, service))
            if slot is None:
                continue
            if is_other_store:
                self._leave((record.tenant, service))
            else:
                slot.process.send({"type": "record", "record": msgspec.to_builtins(record)})

    def _retire(self, tenant: str) -> None:
        """Serve this tenant no longer."""
        if self._kept.pop(tenant, None) is None:
            return
        self._store.remove(tenant)
        self._log.info("record_gone", tenant=tenant)
        for service in SERVICES:
            self._leave((tenant, service))

    def _leave(self, key: Key) -> None:
        slot = self._slots.pop(key, None)
        if slot is None:
            return
        for connected, _ in slot.early:
            connected.close()
        task = asyncio.create_task(self._processes.remove(slot.process))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    # --- certificates

    def identities_wanted(self, now: float) -> Iterator[Key]:
        """Tenants' services that have no certificate, or one that is to be renewed."""
        for tenant, kept in self._kept.items():
            for service in SERVICES:
                identity = kept.identities.get(service)
                if identity is None or now >= identity.renew_at:
                    yield tenant, service

    def take_identity(self, key: Key, identity: KeptIdentity) -> None:
        """A service's new certificate. Blocks for the disk."""
        tenant, service = key
        kept = self._kept.get(tenant)
        if kept is None:
            return
        self._keep(with_identity(kept, service, identity))
        slot = self._slots.get(key)
        if slot is not None:
            slot.process.send({"type": "identity", **_shown(identity)})

    # --- connections

    def _on_router(self, message: Message, descriptors: list[int]) -> None:
        if message["type"] == "report":
            self._router_status = message["status"]
        elif message["type"] == "connection":
            connected = socket.socket(fileno=descriptors[0])
            self._pass_on((message["tenant"], message["service"]), connected, message["address"])

    def _pass_on(self, key: Key, connected: socket.socket, address: str) -> None:
        tenant, service = key
        kept = self._kept.get(tenant)
        if kept is None or service not in SERVICES:
            self._refuse(connected, "unknown_tenant")
        elif service not in kept.identities:
            self._refuse(connected, "no_certificate")
        else:
            slot = self._slots.get(key) or self._open(key)
            if slot.process.is_running:
                slot.process.send({"type": "take", "address": address}, connected)
            elif len(slot.early) < _EARLY_MAX:
                slot.early.append((connected, address))
            else:
                self._refuse(connected, "too_many_wait")

    def _refuse(self, connected: socket.socket, why: str) -> None:
        self._refused[why] += 1
        connected.close()

    def _open(self, key: Key) -> Slot:
        tenant, service = key
        slot = Slot(
            Process(
                service,
                f"{service} {tenant}",
                lambda process: self._begin(key, process),
                lambda message, _: self._on_child(key, message),
            )
        )
        self._slots[key] = slot
        self._processes.add(slot.process)
        return slot

    def _begin(self, key: Key, process: Process) -> None:
        """A new process of this tenant: whose it is, and what waits for it."""
        tenant, service = key
        kept = self._kept[tenant]
        start = {
            "type": "start",
            "service": service,
            "record": msgspec.to_builtins(kept.record),
            "is_store_probed": kept.probed == kept.record.store.url,
            **_shown(kept.identities[service]),
        }
        process.send(start)
        slot = self._slots[key]
        for connected, address in slot.early:
            process.send({"type": "take", "address": address}, connected)
        slot.early.clear()

    def _on_child(self, key: Key, message: Message) -> None:
        slot, kept = self._slots.get(key), self._kept.get(key[0])
        if slot is None or kept is None:
            return
        if message["type"] == "ready" and kept.probed != kept.record.store.url:
            self._keep(with_probed(kept))
        elif message["type"] == "report":
            slot.status = message["status"]
            self._take_facts(slot, key[0], message["facts"])

    def _take_facts(self, slot: Slot, tenant: str, reported: list[dict[str, Any]]) -> None:
        changed = []
        for one in reported:
            facts = msgspec.convert({"tenant": tenant, **one}, StreamFacts)
            if slot.facts.get((facts.vpg, facts.host)) != facts:
                slot.facts[facts.vpg, facts.host] = facts
                changed.append(facts)
        if changed:
            self.on_facts(changed)

    def all_facts(self) -> list[StreamFacts]:
        """Every stream, as it was last told."""
        return [facts for slot in self._slots.values() for facts in slot.facts.values()]

    # --- what is said of it

    async def is_ready(self) -> bool:
        """Whether connections are passed on."""
        return self._router is not None and self._router.is_ready

    def status(self) -> dict[str, object]:
        """The whole node; JSON. Names no credential."""
        now = asyncio.get_running_loop().time()
        walls = Counter(kept.record.store.wall for kept in self._kept.values())
        router = self._router
        return {
            "at": time.time_ns(),
            "tenants": len(self._kept),
            "walls": dict(walls),
            "warnings": self._warnings(now),
            "refused": dict(self._refused),
            "zygote": self._processes.zygote.as_dict(now),
            "router": {**(router.as_dict(now) if router else {}), **self._router_status},
            "services": [
                {
                    "tenant": tenant,
                    "service": service,
                    **slot.process.as_dict(now),
                    "status": slot.status,
                }
                for (tenant, service), slot in self._slots.items()
            ],
        }

    def _warnings(self, now: float) -> list[str]:
        found = [*self._unreadable]
        shared = sum(kept.record.store.wall == "shared" for kept in self._kept.values())
        if shared:
            found.append(
                f"{shared} tenants share a store credential: nothing but our own code keeps their "
                "journals apart. Give each its own."
            )
        found += [
            f"{slot.process.name} dies often: {slot.process.life.reason}."
            for slot in self._slots.values()
            if slot.process.life.dies_often(now)
        ]
        return found


def _shown(identity: KeptIdentity) -> dict[str, str]:
    return {"certificate": identity.certificate, "key": identity.key}
