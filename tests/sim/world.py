"""One schedule: hosts, ingests, a store and a network in one loop; faults; peace; judgement."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from host_agent.wire.keys import GroupKey, TenantKey
from host_agent.wire.names import Identity
from host_agent.wire.record import State
from host_agent.wire.segment import KIND_DATA, parse_trailer
from tests.model.store import MemoryStore
from tests.sim.cloud import Cloud, Ingest, Place
from tests.sim.judge import Answer, Broken, Question, judge
from tests.sim.loop import SimLoop
from tests.sim.machine import START_NS, Machine, Plan, Surroundings
from tests.sim.net import Network, Weather
from tests.sim.options import Options
from tests.sim.ring import Shape
from tests.sim.store import Service
from workers.journal.boundary import parse_boundary

GRID = 64
#: A history window and a grace of collection: seconds here, hours elsewhere.
WINDOW_SECONDS, GRACE_SECONDS = 10, 20
_SLOTS = 512
_BUDGET_BYTES = 512 * 1024
#: After all faults are healed everything must be recording and stored within this, seconds.
HEAL_SECONDS = 300.0
_WATCH_SECONDS = 0.5


@dataclass
class Durable:
    """What the store has of one stream, as its creations showed."""

    identity: Identity
    stored: dict[bytes, int]
    #: Of each data segment: place, generation, last sequence.
    places: list[tuple[int, bytes, int]] = field(default_factory=list)
    #: Of each boundary: when it was set, and its first place.
    boundaries: list[tuple[float, int]] = field(default_factory=list)

    def is_given_up(self, generation: bytes, seq: int) -> bool:
        """Whether a boundary lets go of the position."""
        first = max((first for _, first in self.boundaries), default=1)
        place = next((p for p, name, last in self.places if name == generation and last >= seq), 0)
        return 0 < place < first


class World:
    """Everything of one schedule."""

    def __init__(self, loop: SimLoop, options: Options, keys: Keys, show: bool = False) -> None:
        self.loop, self.options, self.keys = loop, options, keys
        self.counters: Counter[str] = Counter()
        self._show = show
        self._digest = blake3()
        self.rng = self.source("world")
        self.net = Network(loop, self.source("net"), self.count, Weather())
        self.service = Service(loop, self.source("store"), self.count)
        self.service.on_create = self._on_create
        self.service.on_delete = self._on_delete
        clocks = (f.kind.startswith("ingest_clock") for f in options.faults)
        self.has_wrong_clocks = any(clocks)
        self.durable: dict[str, Durable] = {}
        self.sealed: set[tuple[bytes, int]] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="holdfast-sim-"))
        self.machines: list[Machine] = []
        self.ingests: list[Ingest] = []
        self.broken: list[Broken] = []
        self._build()

    # --- what everything reports to

    def source(self, name: str) -> random.Random:
        """A source of randomness of its own for each purpose: dropping one fault moves no other."""
        return random.Random(f"{self.options.seed}/{name}")

    def count(self, what: str) -> None:
        """A rare state was reached."""
        self.counters[what] += 1

    def trace(self, actor: str, *what: object) -> None:
        """What happened, for the digest and for people."""
        line = f"{self.loop.time():.6f} {actor} {' '.join(map(str, what))}\n"
        self._digest.update(line.encode())
        if self._show:
            print(line, end="")

    def digest(self) -> str:
        """Of all that happened, and of all that is stored."""
        final = self._digest.copy()
        for name in sorted(self.service.objects):
            final.update(name.encode() + blake3(self.service.objects[name]).digest())
        final.update(f"{self.loop.turns} {self.loop.time():.6f}".encode())
        return final.hexdigest(16)

    def _on_create(self, name: str, data: bytes) -> None:
        self.trace("store", name, len(data))
        if "/boundary/" in name:
            self._on_boundary(name, data)
        if "/chain/" not in name:
            return
        info = parse_trailer(data)
        stream = self.durable[name.partition("/chain/")[0]]
        if info.kind == KIND_DATA:
            stream.places.append((info.place, info.generation, info.last_seq))
        self.count("segment" if info.kind == KIND_DATA else "epoch")
        if any(info.generation):
            known = stream.stored.get(info.generation, 0)
            stream.stored[info.generation] = max(known, info.last_seq)

    def _on_boundary(self, name: str, data: bytes) -> None:
        stream = self.durable[name.partition("/boundary/")[0]]
        boundary = parse_boundary(data, stream.identity, int(name[-16:], 16))
        # From when it was set: a create may be repeated for longer than a grace is here.
        set_at = (boundary.set_at - START_NS) / 1e9
        stream.boundaries.append((set_at, boundary.first_place))
        self.count("boundary")
        begins = START_NS + int((self.loop.time() - WINDOW_SECONDS) * 1e9)
        if boundary.history_from > begins and not self.has_wrong_clocks:
            self.fail(Broken("I15", f"{name} gives up what is within the window"))

    def _on_delete(self, name: str) -> None:
        self.trace("store deletes", name)
        if "/chain/" in name:
            stream = self.durable[name.partition("/chain/")[0]]
            over = self.loop.time() - GRACE_SECONDS + 1.0
            place = int(name[-16:], 16)
            if not any(at <= over and place < first for at, first in stream.boundaries):
                self.fail(Broken("I15", f"{name} was deleted before its grace was over"))

    def on_freed(self, machine: Machine, generation: bytes, seq: int) -> None:
        """An agent gave ring space back: only what is stored may go."""
        stored = self.durable[str(machine.plan.identity)].stored.get(generation, 0)
        if generation in machine.history.generations:
            one = machine.history.generations[generation]
            one.freed = max(one.freed, seq)
        if seq > stored:
            self.fail(Broken("I2", f"{machine.plan.name} freed {seq}, stored is {stored}"))

    def fail(self, broken: Broken) -> None:
        """An invariant broke inside a process: it is told where the schedule runs."""
        self.broken.append(broken)
        raise broken

    def on_sealed(self, commitment: bytes, counter: int) -> None:
        """A frame was sealed with the key that the commitment stands for."""
        if (commitment, counter) in self.sealed:
            self.fail(Broken("I16", f"a key sealed two frames with counter {counter}"))
        self.sealed.add((commitment, counter))

    # --- building

    def _build(self) -> None:
        options = self.options
        cloud = Cloud(self.loop, self.net, self.service, self.count, self.trace, self.source)
        for tenant in range(options.tenants):
            for number in range(options.ingests):
                name = f"ingest{tenant}{number}"
                place = Place(name, f"cloud{tenant}{number}", self.tenant(tenant), _BUDGET_BYTES)
                self.ingests.append(Ingest(place, cloud))
        self.around = Surroundings(
            self.loop,
            self.net,
            self.count,
            self.trace,
            self.source,
            self.on_freed,
            lambda identity: self.keys.group(identity.tenant),
            self._folder,
        )
        for number in range(options.hosts):
            self.add_machine(self._plan(number))

    @staticmethod
    def tenant(number: int) -> str:
        """A tenant's name."""
        return f"tenant{number}"

    def _plan(self, number: int) -> Plan:
        options = self.options
        tenant = number % options.tenants
        host = f"h{number}"
        identity = Identity(self.tenant(tenant), "vpg", host)
        self.durable[str(identity)] = Durable(identity, {})
        disks = {f"d{disk}": options.disk_kib * 1024 for disk in range(options.disks)}
        ingests = [one.place for one in self.ingests if one.place.tenant == identity.tenant]
        return Plan(
            host,
            identity,
            Shape(disks, _SLOTS, options.ring_kib * 1024, GRID),
            options.commit_seconds,
            options.rate,
            options.rate,
            options.checkpoint_seconds,
            options.read_seconds,
            options.spool_kib,
            tuple(place.name for place in ingests),
            tuple(place.machine for place in ingests),
        )

    def add_machine(self, plan: Plan) -> Machine:
        """A host."""
        machine = Machine(plan, self.around)
        self.machines.append(machine)
        return machine

    def machines_of(self, identity: Identity) -> list[Machine]:
        """All hosts that say they are this one."""
        return [machine for machine in self.machines if machine.plan.identity == identity]

    def is_cloned(self, identity: Identity) -> bool:
        """Whether several hosts say they are this one."""
        return len(self.machines_of(identity)) > 1

    # --- running

    def start(self) -> None:
        """Everything begins."""
        for ingest in self.ingests:
            ingest.start()
        for machine in self.machines:
            machine.power_on()

    async def guests(self, machine: Machine) -> None:
        """Writes of a host's guests, in bursts and pauses, until their number is reached."""
        rng = machine.guest_rng
        pause = self.options.seconds / max(1, self.options.writes)
        done = 0
        while done < self.options.writes:
            await asyncio.sleep(rng.expovariate(1.0) * pause * 4)
            for _ in range(min(rng.randrange(1, 8), self.options.writes - done)):
                done += 1
                await machine.write()

    async def watch(self) -> None:
        """Claims and bounds, at every moment."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS * self.rng.uniform(0.5, 1.5))
            self.check_defects()
            self.check_claims()
            self.check_bounds()

    def check_defects(self) -> None:
        """No process may meet an error that nobody expected."""
        for broken in self.broken:
            raise broken
        for ingest in self.ingests:
            if ingest.server is not None and ingest.server.counters.defects:
                raise Broken("defect", f"{ingest.place.name}: a session met a defect")
        if self.loop.defects:
            raise Broken("defect", self.loop.defects[0])

    def _truth(self, machine: Machine) -> float:
        """Up to which instant everything that this host answered can be restored."""
        stored = self.durable[str(machine.plan.identity)].stored
        history = machine.history
        counts = [history.newest_count(name, seq) for name, seq in stored.items()]
        newest = max(counts, default=-1)
        return history.unsafe_since(newest) if newest >= 0 else -1.0

    def check_claims(self) -> None:
        """I11: nobody claims a newer recovery point than there is."""
        now = self.loop.time()
        for machine in self.machines:
            identity = machine.plan.identity
            if self.is_cloned(identity):
                continue
            truth = self._truth(machine)
            for ingest in self.ingests:
                facts = ingest.server.streams.facts.get(identity) if ingest.server else None
                if facts is not None and facts.rpo.safe is not None:
                    self.count("claim_checked")
                    if facts.rpo.safe.monotonic > truth + 1e-6:
                        raise Broken("I11", f"safe {facts.rpo.safe.monotonic}, true {truth}")
            stream = machine.stream
            if stream is not None and machine.agent is not None and machine.agent.is_alive:
                age = stream.figures.recovery.age_seconds(machine.clock.wall_ns(), now)
                if age is not None and age < now - truth - 1e-6:
                    raise Broken("I11", f"the agent says {age}, true is {now - truth}")

    def check_bounds(self) -> None:
        """I12: what is held is bounded."""
        for ingest in self.ingests:
            budget, server = ingest.budget, ingest.server
            if budget is not None and server is not None:
                most = _BUDGET_BYTES + 160 * 1024 * max(1, len(server.sessions))
                if budget.held > most:
                    raise Broken("I12", f"{ingest.place.name} holds {budget.held} bytes")
        if self.net.most_held > 1024 * 1024:
            raise Broken("I12", f"a connection holds {self.net.most_held} bytes")

    # --- the end

    async def settle(self) -> None:
        """Liveness: with everything healed all streams record, and all is stored, in time."""
        deadline = self.loop.time() + HEAL_SECONDS
        looked = self.loop.time() + 5.0
        while not all(map(self.is_settled, self.machines)):
            if self.loop.time() > deadline:
                late = next(m for m in self.machines if not self.is_settled(m))
                raise Broken("I14", f"{late.plan.name} does not come back: {describe(late)}")
            await asyncio.sleep(0.5)
            if self.loop.time() >= looked:
                looked += 10.0
                self.operate()

    def operate(self) -> None:
        """The person who looks at alerts, and does what their hints say."""
        for machine in self.machines:
            if machine.is_up and machine.stream is not None and machine.stream.is_stopped:
                self.count("operator_resync")
                self.trace(machine.plan.name, "resync by a person")
                machine.stream.resync()

    def is_settled(self, machine: Machine) -> bool:
        """Recording, everything stored, everything given back; a host that is off is settled."""
        tap = machine.tap
        if not machine.is_up:
            return True
        if tap is None or not tap.is_alive or tap.state != State.RECORDING or tap.pending:
            return False
        stored = self.durable[str(machine.plan.identity)].stored.get(tap.ring.generation, 0)
        return stored == tap.ring.head == tap.ring.freed

    def judge(self, identity: Identity, *, at_end: bool = False) -> None:
        """Restore from what is stored now, and compare."""
        rng = self.source(f"judge/{identity}/{self.loop.time():.3f}")
        histories = [machine.history for machine in self.machines_of(identity)]
        store = MemoryStore(self.service.objects)
        use_index = rng.random() < 0.5 and self.options.indexes
        ask = Question(
            store,
            identity,
            self.keys.tenant(identity.tenant),
            histories,
            rng,
            self.count,
            use_index,
            is_given_up=self.durable[str(identity)].is_given_up,
            points=4 if at_end else 2,
        )
        answer = judge(ask)
        if at_end:
            self._check_heads(identity, answer)
            for _ in range(self.options.corruptions):
                self.count("corrupted_store")
                judge(replace(ask, store=damaged(store, identity, rng), tolerant=True))

    def _check_heads(self, identity: Identity, answer: Answer) -> None:
        """The newest point is the disks as they are, on the one host that still runs."""
        for machine in self.machines_of(identity):
            if machine.is_up and answer.newest is not None:
                if answer.found[answer.newest] != tuple(map(bytes, machine.disks)):
                    raise Broken("I1", f"{identity}: the newest point is not the disk")
                return
        raise Broken("I3", f"{identity}: nothing can be restored in the end")

    def end(self) -> None:
        """Let go of everything."""
        for machine in self.machines:
            if machine.agent is not None:
                machine.agent.kill()
        for ingest in self.ingests:
            ingest.kill()

    def close(self) -> None:
        """Give descriptors back."""
        for machine in self.machines:
            if machine.ring is not None:
                machine.ring.close()
                machine.ring = None
        shutil.rmtree(self._folder, ignore_errors=True)


def damaged(store: MemoryStore, identity: Identity, rng: random.Random) -> MemoryStore:
    """A copy of the store in which one object of the stream is not what it was."""
    objects = dict(store.objects)
    names = sorted(name for name in objects if name.startswith(f"{identity}/"))
    name = rng.choice(names)
    data, way = objects[name], rng.randrange(4)
    if way == 0:
        at = rng.randrange(len(data))
        objects[name] = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    elif way == 1:
        objects[name] = data[: rng.randrange(len(data))]
    elif way == 2:
        objects[name] = objects[rng.choice(names)]
    else:
        del objects[name]
    return MemoryStore(objects)


def describe(machine: Machine) -> str:
    """Why a host is not settled."""
    tap, stream = machine.tap, machine.stream
    words: list[Any] = []
    if tap is not None:
        words += [tap.state.name, tap.cause, f"head {tap.ring.head} freed {tap.ring.freed}"]
    if stream is not None:
        words += [stream.phase, stream.failure, stream.decider.alert]
    return ", ".join(map(str, words))


class Keys:
    """Keys of all tenants: made once, the same for every schedule."""

    def __init__(self) -> None:
        self._tenants: dict[str, TenantKey] = {}
        self._groups: dict[str, GroupKey] = {}

    def tenant(self, name: str) -> TenantKey:
        """A tenant's."""
        return self._tenants.setdefault(name, TenantKey.make(name))

    def group(self, tenant: str) -> GroupKey:
        """Its group's."""
        if tenant not in self._groups:
            self._groups[tenant] = GroupKey.make(self.tenant(tenant), "vpg")
        return self._groups[tenant]
