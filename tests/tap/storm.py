"""Everything at once by one seed: clients, faults, holds, syncs, deaths, sizes, disks that join.

After each stretch all faults are healed, the sync runs to its end, and every disk must equal what
the ring's records make of it (I3, I4). What was answered without an error must be on the disk (I1).
"""

from __future__ import annotations

import contextlib
import os
import random
from dataclasses import dataclass
from pathlib import Path

from host_agent.wire.tapctl import TapRefused
from tests.model.model import END
from tests.tap import nbd
from tests.tap.daemon import Attached, Stream, Tap
from tests.tap.follow import Follower

SECTOR = 512
_TARGETS = ("read", "write", "flush", "trim", "zero")
_COMMANDS = (nbd.WRITE,) * 5 + (nbd.READ, nbd.TRIM, nbd.ZERO, nbd.FLUSH)


@dataclass
class Member:
    """A disk of the storm's group."""

    attached: Attached
    clients: list[nbd.Nbd]


class Storm:
    """One group of up to three disks under a tap that may die at any step."""

    def __init__(self, tap: Tap, folder: Path, rng: random.Random) -> None:
        self.tap, self.folder, self.rng = tap, folder, rng
        self.cache = rng.choice(["auto", "writeback"])
        self.members: dict[str, Member] = {}
        self.made = 0
        self.log: list[str] = []
        self.join()
        self.follower = Follower(self._stream())

    def _stream(self) -> Stream:
        return Stream(next(iter(self.members.values())).attached.stream_socket)

    def run(self, steps: int) -> None:
        """So many random steps."""
        actions = [
            (40, self.requests), (15, self.take), (8, self.sync_some), (6, self.mark),
            (6, self.hold), (8, self.fault), (4, self.heal), (2, self.reopen), (2, self.stop),
            (2, self.kill), (2, self.resize), (2, self.join), (1, self.leave), (1, self.edit),
            (1, self.new_generation),
        ]  # fmt: skip
        weights = [weight for weight, _ in actions]
        for _ in range(steps):
            action = self.rng.choices([act for _, act in actions], weights)[0]
            self.log.append(action.__name__)
            action()

    def check(self) -> None:
        """Heal, finish the sync, compare."""
        self.heal()
        self.collect()
        self.follower.sync()
        while (
            self._is_damaged()
        ):  # a fault hit a read of the sync: it was named, and reads well now
            self.follower.stream.call("sync", bytes=1 << 20, cause="forced")
            self.follower.sync()
        assert set(self.follower.model.disks) == set(self.members), self.log
        for name, member in self.members.items():
            image, real = self.follower.image(name), member.attached.path.read_bytes()
            assert len(image) == len(real), (name, len(image), len(real), self.log)
            assert image == real, (name, _difference(image, real), self.log)

    def _is_damaged(self) -> bool:
        ends = (one.event.body for one in reversed(self.follower.taken) if one.op == END)
        newest = next(ends, None)
        return bool(newest and newest["unreadable"])

    # What clients do

    def requests(self) -> None:
        """A burst over all disks; some of it may stay in flight."""
        for member in self.members.values():
            for client in member.clients:
                for _ in range(self.rng.randint(0, 12)):
                    self._submit(client)
        if self.rng.random() < 0.7:
            self.collect()

    def _submit(self, client: nbd.Nbd) -> None:
        command = self.rng.choice(_COMMANDS)
        if command == nbd.FLUSH:
            client.submit(command)
            return
        sectors = client.size // SECTOR
        count = min(sectors, self.rng.choice([1, 2, 8, 33, 128]))
        first = self.rng.randrange(sectors - count + 1)
        data = self.rng.randbytes(count * SECTOR) if command == nbd.WRITE else b""
        flags = nbd.FUA if command != nbd.READ and self.rng.random() < 0.1 else 0
        client.submit(command, first * SECTOR, count * SECTOR, data, flags)

    def collect(self) -> None:
        """Every answer that is still to come."""
        for member in self.members.values():
            for client in member.clients:
                while client.pending:
                    client.receive()

    # What the agent does

    def take(self) -> None:
        """Records, given back or not."""
        self.follower.take(free=self.rng.random() < 0.7)

    def sync_some(self) -> None:
        """Part of a sync, or of several."""
        channel = self.follower.stream.channel
        asked = channel.send("sync", bytes=self.rng.choice([512, 64 << 10, 1 << 20]))
        self.requests()
        channel.answer(asked)
        self.take()

    def mark(self) -> None:
        """A marker, if the stream records."""
        with contextlib.suppress(TapRefused):
            self.follower.stream.call("mark", body=_marker(self.rng))

    def hold(self) -> None:
        """A hold over some requests; released or left to its timer."""
        body = _marker(self.rng)
        with contextlib.suppress(TapRefused):
            self.follower.stream.call(
                "hold", checkpoint=body["checkpoint"], timeout_ms=20, body=body
            )
        self.requests()
        if self.rng.random() < 0.5:
            with contextlib.suppress(TapRefused):
                self.follower.stream.call("release", checkpoint=body["checkpoint"])

    def reopen(self) -> None:
        """Another agent."""
        self.follower.stream.close()
        self.follower.reopen(self._stream())

    def new_generation(self) -> None:
        """Everything again."""
        self.take()
        self.follower.stream.call("new_generation", cause="forced")
        self.reopen()

    # What goes wrong

    def fault(self) -> None:
        """Errors, delays and short writes below one disk."""
        op = self.rng.choice(_TARGETS[:2] + _TARGETS[3:]) if self.made % 2 else "write"
        self.follower.stream.call(
            "failpoint",
            disk=self.rng.choice(list(self.members)),
            op=op,
            error=self.rng.choice([None, "EIO", "ENOSPC"]),
            after=self.rng.randrange(8),
            count=self.rng.randint(1, 4),
            delay_ms=self.rng.choice([0, 0, 3, 20]),
            short=self.rng.choice([0, SECTOR]) if op == "write" else 0,
        )

    def heal(self) -> None:
        """No faults any more."""
        for disk in self.members:
            for op in _TARGETS:
                self.follower.stream.call(
                    "failpoint", disk=disk, op=op, error=None, after=0, count=0, delay_ms=0, short=0
                )

    def stop(self) -> None:
        """Orderly, with requests in flight."""
        if self.rng.random() < 0.5:
            self.collect()
        self.tap.stop()
        self._successor()

    def kill(self) -> None:
        """Not orderly."""
        self.tap.kill()
        self._successor()

    def edit(self) -> None:
        """A disk is changed while no tap runs."""
        self.collect()
        self.tap.stop()
        victim = self.rng.choice(list(self.members.values())).attached.path
        with victim.open("r+b") as file:
            file.seek(self.rng.randrange(victim.stat().st_size // SECTOR) * SECTOR)
            file.write(self.rng.randbytes(SECTOR))
        self._successor()

    def _successor(self) -> None:
        self.tap.start()
        self.follower.stream.close()
        for name, member in self.members.items():
            attached = self.tap.attach(member.attached.path, disk=name, cache=self.cache)
            assert attached.number == member.attached.number
            member.attached = attached
        self._connect()
        self.follower.reopen(self._stream())

    def _connect(self) -> None:
        for name, member in self.members.items():
            for client in member.clients:
                client.close()
            member.clients = [
                nbd.Nbd(member.attached.nbd_socket, name) for _ in range(self.rng.randint(1, 3))
            ]

    # What changes

    def resize(self) -> None:
        """A disk grows or shrinks; its clients connect again."""
        self.collect()
        member = self.rng.choice(list(self.members.values()))
        os.truncate(member.attached.path, self.rng.randint(128, 1024) * SECTOR)
        self._connect()

    def join(self) -> None:
        """One more disk, with something on it."""
        if len(self.members) == 3:
            return
        self.made += 1
        name = f"d{self.made}"
        path = self.folder / f"{name}.img"
        path.write_bytes(self.rng.randbytes(SECTOR * 64) + bytes(SECTOR * 512))
        attached = self.tap.attach(path, disk=name, cache=self.cache, ring_bytes=4 << 20)
        self.members[name] = Member(attached, [nbd.Nbd(attached.nbd_socket, name)])

    def leave(self) -> None:
        """One disk less."""
        if len(self.members) == 1:
            return
        self.collect()
        name = self.rng.choice(list(self.members))
        for client in self.members.pop(name).clients:
            client.close()
        self.tap.call("detach", group="g", disk=name, force=True)


def _marker(rng: random.Random) -> dict[str, object]:
    identifier = rng.randbytes(16).hex()
    return {"checkpoint": identifier, "kind": "crash", "tag": None, "scope": "stream"}


def _difference(image: bytes, real: bytes) -> list[int]:
    """The first sectors that differ."""
    sectors = range(0, len(real), SECTOR)
    wrong = [at // SECTOR for at in sectors if image[at : at + SECTOR] != real[at : at + SECTOR]]
    return wrong[:10]
