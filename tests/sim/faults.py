"""What goes wrong, when, and how it is healed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from tests.sim.cloud import Ingest
from tests.sim.machine import Machine
from tests.sim.net import Weather
from tests.sim.options import Fault
from tests.sim.store import Moods
from tests.sim.worker import Worker
from tests.sim.world import World

_YEAR = 365.0 * 86_400


class Nemesis:
    """Carries out a schedule's faults. Each has a method `_KIND(fault, rng)` that may last."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = world.loop
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """All faults, each at its time; then until the guests' time is over."""
        for number, fault in enumerate(self._world.options.faults):
            self._tasks.append(self._loop.create_task(self._one(number, fault)))
        self._tasks.append(self._loop.create_task(Worker(self._world).run()))
        await asyncio.sleep(self._world.options.seconds)

    async def _one(self, number: int, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        rng = self._world.source(f"fault/{number}/{fault.kind}")
        self._world.trace("fault", fault.kind, fault.target, fault.seconds)
        self._world.count(f"fault_{fault.kind}")
        carry_out: Callable[[Fault, random.Random], Coroutine[Any, Any, None]]
        carry_out = getattr(self, f"_{fault.kind}")
        await carry_out(fault, rng)

    def heal(self) -> None:
        """End everything that is still wrong, and one of each pair of twins."""
        world = self._world
        for task in self._tasks:
            task.cancel()
        world.trace("heal")
        world.service.moods = Moods()
        base = Weather()
        for weather in world.net.weathers.values():
            vars(weather).update(vars(base))
        world.net.changed()
        for ingest in world.ingests:
            ingest.store_cut = False
            ingest.clock.mend()
            if ingest.process is not None and ingest.process.is_stopped:
                ingest.process.resume()
            ingest.start()
        for machine in world.machines:
            self._heal_machine(machine)
        self._part_twins()

    @staticmethod
    def _heal_machine(machine: Machine) -> None:
        machine.disk_fails = machine.disk_slow = False
        machine.clock.mend()
        if machine.agent is not None and machine.agent.is_stopped:
            machine.agent.resume()
        if not machine.is_retired:
            machine.power_on()
            assert machine.stream is not None
            if machine.stream.is_paused:
                machine.stream.resume()
            machine.stream.set_limits(None, None)

    def _part_twins(self) -> None:
        world = self._world
        rng = world.source("twins")
        for identity in {machine.plan.identity: None for machine in world.machines}:
            twins = [m for m in world.machines_of(identity) if not m.is_retired]
            kept = rng.choice(twins)
            for machine in twins:
                if machine is not kept:
                    machine.retire()

    # --- who is meant

    def _machine(self, fault: Fault) -> Machine:
        machines = self._world.machines
        return machines[fault.target % len(machines)]

    def _ingest(self, fault: Fault) -> Ingest:
        ingests = self._world.ingests
        return ingests[fault.target % len(ingests)]

    # --- hosts

    async def _agent_kill(self, fault: Fault, _rng: random.Random) -> None:
        machine = self._machine(fault)
        machine.kill_agent()
        await asyncio.sleep(fault.seconds * 0.5)
        machine.start_agent()

    async def _agent_stop(self, fault: Fault, _rng: random.Random) -> None:
        agent = self._machine(fault).agent
        if agent is not None and agent.is_alive:
            agent.stop()
            await asyncio.sleep(fault.seconds * 1.5)
            agent.resume()

    async def _tap_kill(self, fault: Fault, rng: random.Random) -> None:
        machine = self._machine(fault)
        was_slow, machine.disk_slow = machine.disk_slow, True
        writes = [self._loop.create_task(machine.write()) for _ in range(3)]
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        machine.disk_slow = was_slow
        machine.stop_tap(cleanly=False)
        await asyncio.gather(*writes)
        await asyncio.sleep(fault.seconds * 0.2)
        machine.start_tap()

    async def _tap_restart(self, fault: Fault, _rng: random.Random) -> None:
        machine = self._machine(fault)
        machine.stop_tap(cleanly=True)
        await asyncio.sleep(fault.seconds * 0.2)
        machine.start_tap()

    async def _power_loss(self, fault: Fault, _rng: random.Random) -> None:
        machine = self._machine(fault)
        machine.power_loss()
        await asyncio.sleep(fault.seconds)
        if not machine.is_retired:
            machine.power_on()

    async def _host_clock_ahead(self, fault: Fault, _rng: random.Random) -> None:
        await self._wrong_clock(self._machine(fault), fault, _YEAR)

    async def _host_clock_back(self, fault: Fault, _rng: random.Random) -> None:
        await self._wrong_clock(self._machine(fault), fault, -3600.0)

    async def _host_clock_frozen(self, fault: Fault, _rng: random.Random) -> None:
        await self._wrong_clock(self._machine(fault), fault, None)

    async def _ingest_clock_ahead(self, fault: Fault, _rng: random.Random) -> None:
        await self._wrong_clock(self._ingest(fault), fault, _YEAR)

    async def _ingest_clock_back(self, fault: Fault, _rng: random.Random) -> None:
        await self._wrong_clock(self._ingest(fault), fault, -3600.0)

    async def _ingest_clock_frozen(self, fault: Fault, _rng: random.Random) -> None:
        await self._wrong_clock(self._ingest(fault), fault, None)

    @staticmethod
    async def _wrong_clock(of: Machine | Ingest, fault: Fault, jump: float | None) -> None:
        if jump is None:
            of.clock.freeze()
        else:
            of.clock.jump(jump)
        await asyncio.sleep(fault.seconds)
        of.clock.mend()

    async def _disk_fails(self, fault: Fault, _rng: random.Random) -> None:
        machine = self._machine(fault)
        machine.disk_fails = True
        await asyncio.sleep(fault.seconds)
        machine.disk_fails = False

    async def _disk_slow(self, fault: Fault, _rng: random.Random) -> None:
        machine = self._machine(fault)
        machine.disk_slow = True
        await asyncio.sleep(fault.seconds)
        machine.disk_slow = False

    async def _burst(self, fault: Fault, rng: random.Random) -> None:
        machine = self._machine(fault)
        for _ in range(rng.randrange(5, 40)):
            await machine.write()
            await asyncio.sleep(0.001)

    async def _pause(self, fault: Fault, _rng: random.Random) -> None:
        stream = self._machine(fault).stream
        if stream is not None:
            stream.pause()
            await asyncio.sleep(fault.seconds)
            stream.resume()

    async def _limit(self, fault: Fault, _rng: random.Random) -> None:
        stream = self._machine(fault).stream
        if stream is not None:
            stream.set_limits(2_000.0 + 50_000.0 * fault.strength, 5_000.0)
            await asyncio.sleep(fault.seconds)
            stream.set_limits(None, None)

    async def _resync(self, fault: Fault, _rng: random.Random) -> None:
        stream = self._machine(fault).stream
        if stream is not None:
            stream.resync()

    async def _clone_live(self, fault: Fault, _rng: random.Random) -> None:
        machine = self._machine(fault)
        twin = machine.copy(f"{machine.plan.name}+{len(self._world.machines)}", with_memory=True)
        if twin is not None:
            self._world.machines.append(twin)
            await asyncio.sleep(fault.seconds * 0.2)
            await self._live(twin)

    async def _clone_backup(self, fault: Fault, rng: random.Random) -> None:
        machine = self._machine(fault)
        twin = machine.copy(f"{machine.plan.name}+{len(self._world.machines)}", with_memory=False)
        if twin is None:
            return
        self._world.machines.append(twin)
        await asyncio.sleep(fault.seconds)
        if rng.random() < 0.5:
            machine.retire()
        await self._live(twin)

    async def _live(self, twin: Machine) -> None:
        """Its guests go on at once, its agent soon."""
        twin.is_up = True
        twin.start_tap()
        for _ in range(twin.guest_rng.randrange(16)):
            await twin.write()
        twin.power_on()
        for _ in range(12):
            await asyncio.sleep(twin.guest_rng.uniform(0.1, 1.0))
            await twin.write()

    # --- the network

    def _lines(self, fault: Fault) -> tuple[list[Weather], list[Weather]]:
        """There and back, between a host and one of its ingests."""
        machine = self._machine(fault)
        servers = machine.plan.servers
        server = servers[fault.target // 8 % len(servers)]
        net, name = self._world.net, machine.plan.name
        return [net.weather(name, server)], [net.weather(server, name)]

    async def _for(self, fault: Fault, lines: list[Weather], **what: Any) -> None:
        before = [{name: getattr(line, name) for name in what} for line in lines]
        for line in lines:
            vars(line).update(what)
        await asyncio.sleep(fault.seconds)
        for line, values in zip(lines, before, strict=True):
            vars(line).update(values)
        self._world.net.changed()

    async def _partition(self, fault: Fault, _rng: random.Random) -> None:
        there, back = self._lines(fault)
        await self._for(fault, there + back, is_cut=True)

    async def _unplugged(self, fault: Fault, _rng: random.Random) -> None:
        machine, net = self._machine(fault), self._world.net
        lines = [net.weather(machine.plan.name, server) for server in machine.plan.servers]
        await self._for(fault, lines, is_cut=True)

    async def _cut_up(self, fault: Fault, _rng: random.Random) -> None:
        await self._for(fault, self._lines(fault)[0], is_cut=True)

    async def _cut_down(self, fault: Fault, _rng: random.Random) -> None:
        await self._for(fault, self._lines(fault)[1], is_cut=True)

    async def _loss(self, fault: Fault, _rng: random.Random) -> None:
        there, back = self._lines(fault)
        await self._for(fault, there + back, loss=0.01 + 0.29 * fault.strength)

    async def _delay(self, fault: Fault, _rng: random.Random) -> None:
        there, back = self._lines(fault)
        await self._for(fault, there + back, latency=0.005 + 2.0 * fault.strength**2)

    async def _narrow(self, fault: Fault, _rng: random.Random) -> None:
        there, back = self._lines(fault)
        await self._for(fault, there + back, bandwidth=8_000.0 + 100_000.0 * fault.strength)

    async def _resets(self, fault: Fault, rng: random.Random) -> None:
        machine = self._machine(fault)
        for _ in range(rng.randrange(1, 6)):
            for connection in list(self._world.net.connections):
                if connection.host == machine.plan.name:
                    self._world.count("reset")
                    connection.reset()
            await asyncio.sleep(rng.expovariate(1.0) * max(0.05, fault.seconds / 4))

    async def _clog(self, fault: Fault, rng: random.Random) -> None:
        """Stop lines one by one, let them go in another order."""
        lines = list(self._world.net.weathers.values())
        rng.shuffle(lines)
        step = fault.seconds / max(1, len(lines))
        for line in lines:
            line.is_clogged = True
            await asyncio.sleep(step / 2)
        rng.shuffle(lines)
        for line in lines:
            line.is_clogged = False
            self._world.net.changed()
            await asyncio.sleep(step / 2)

    # --- ingests

    async def _ingest_kill(self, fault: Fault, _rng: random.Random) -> None:
        ingest = self._ingest(fault)
        ingest.kill()
        await asyncio.sleep(fault.seconds * 0.4)
        ingest.start()

    async def _ingest_stop(self, fault: Fault, _rng: random.Random) -> None:
        process = self._ingest(fault).process
        if process is not None and process.is_alive:
            process.stop()
            await asyncio.sleep(fault.seconds * 1.5)
            process.resume()

    async def _ingest_restart(self, fault: Fault, _rng: random.Random) -> None:
        ingest = self._ingest(fault)
        ingest.stop()
        await asyncio.sleep(fault.seconds * 0.3 + 5.0)
        ingest.start()

    async def _store_cut(self, fault: Fault, _rng: random.Random) -> None:
        ingest = self._ingest(fault)
        ingest.store_cut = True
        await asyncio.sleep(fault.seconds)
        ingest.store_cut = False

    # --- the store

    async def _mood(self, fault: Fault, **what: Any) -> None:
        moods = self._world.service.moods
        before = {name: getattr(moods, name) for name in what}
        vars(moods).update(what)
        await asyncio.sleep(fault.seconds)
        vars(moods).update(before)

    async def _store_away(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, away=True)

    async def _store_busy(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, busy=0.2 + 0.7 * fault.strength)

    async def _store_slow(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, slow=0.1 + 0.6 * fault.strength, latency=0.1)

    async def _store_lost_answer(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, lost_answer=0.1 + 0.5 * fault.strength)

    async def _store_late(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, late=0.1 + 0.5 * fault.strength)

    async def _store_full(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, full=True)

    async def _store_storm(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, exists_storm=0.1 + 0.5 * fault.strength, lost_answer=0.2)

    async def _store_stale(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, stale_seconds=1.0 + 10.0 * fault.strength)

    async def _store_corrupt(self, fault: Fault, _rng: random.Random) -> None:
        await self._mood(fault, corrupt=0.1 + 0.4 * fault.strength)
