"""Restores through a data node's door: the bytes of the model, over every break."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from host_agent.recovery import partial
from host_agent.recovery.door import Doorway, connect
from host_agent.recovery.errors import (
    DoorsAway,
    TargetInUse,
    VerifyFailed,
)
from host_agent.recovery.restore import Progress
from host_agent.wire import limits
from host_agent.wire.names import Identity
from tests.model.builder import JournalBuilder
from tests.model.workload import Shape, Workload
from tests.restore.door import (
    BLOCK,
    World,
    door_process,
    fetch,
    serving,
)
from workers.storage.local import LocalStore


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def address_of(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


# --- the bytes


@pytest.mark.invariant("I3")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_disks_equal_the_model(world: World, tmp_path: Path, seed: int) -> None:
    Workload(world.builder, Shape({"root": 64, "data": 40}), random.Random(seed)).run()
    progress: list[Progress] = []

    async def run() -> None:
        async with serving(world.start) as (address, _):
            done = await fetch(world, [address], tmp_path / "out", progress=progress)
        for disk in done.disks:
            path = tmp_path / "out" / f"{disk.name}.raw"
            assert path.read_bytes() == world.builder.model.images()[disk.name]
            assert path.stat().st_mode & 0o777 == 0o600
        assert {disk.name for disk in done.disks} == set(world.builder.model.images())
        assert done.as_dict()["verified"] is True

    asyncio.run(run())
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    images = [f"{name}.raw" for name in world.builder.model.images()]
    assert left == sorted([*images, "restored.json"])
    assert progress[-1].phase == "verify"
    assert progress[-1].share == 1.0


def test_zeroes_are_not_sent(world: World, tmp_path: Path) -> None:
    size = 1 << 34
    world.builder.generation({"root": size})
    world.builder.end()
    for at in (0, size // 2, size - 512):
        world.builder.write(0, at, b"x" * 512)
    world.builder.segment()

    async def run() -> None:
        async with serving(world.start) as (address, service):
            done = await fetch(world, [address], tmp_path / "out")
            assert done.disks[0].bytes_received == 3 * 512
            assert service.status()["bytes_sent"] == 3 * 512

    asyncio.run(run())
    status = (tmp_path / "out" / "root.raw").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 1 << 20
    with (tmp_path / "out" / "root.raw").open("rb") as file:
        file.seek(size - 512)
        assert file.read() == b"x" * 512


def test_a_long_list_of_ranges_comes_in_parts(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESTORE_RANGES_MAX", 10)
    count = 25
    step = 2 * 64 * 1024
    world.builder.generation({"root": count * step})
    world.builder.end()
    for number in range(count):
        world.builder.write(0, number * step, number.to_bytes(4, "big") * 128)
    world.builder.segment()

    async def run() -> None:
        async with serving(world.start) as (address, _):
            done = await fetch(world, [address], tmp_path / "out")
            assert done.disks[0].bytes_received == count * 512

    asyncio.run(run())
    with (tmp_path / "out" / "root.raw").open("rb") as file:
        for number in (0, 9, 10, 11, count - 1):
            file.seek(number * step)
            assert file.read(512) == number.to_bytes(4, "big") * 128


def test_two_streams_of_a_group(world: World, tmp_path: Path) -> None:
    world.fill(4)
    store = LocalStore(tmp_path / "store")
    identity = Identity(world.tenant, "vpg-1", "source-2")
    second = JournalBuilder(store, identity, world.builder.tenant_key, random.Random(9))
    second.group_key = world.builder.group_key
    Workload(second, Shape({"other": 40}), random.Random(9)).run()
    made = world.ticket(streams=["source-1", "source-2"])

    async def run() -> None:
        async with serving(world.start) as (address, _):
            done = await fetch(world, [address], tmp_path / "out", ticket=made)
            assert [moment.receipt.stream for moment in done.moments] == ["source-1", "source-2"]

    asyncio.run(run())
    for builder in (world.builder, second):
        for name, image in builder.model.images().items():
            assert (tmp_path / "out" / f"{name}.raw").read_bytes() == image


# --- what breaks off


@pytest.mark.invariant("I3")
def test_a_killed_restore_process_is_gone_on_with(world: World, tmp_path: Path) -> None:
    image = world.fill()
    kills = [9 * BLOCK]

    async def run() -> None:
        with door_process(world) as door:

            class Killing(list[Progress]):
                def append(self, now: Progress) -> None:
                    super().append(now)
                    if kills and now.bytes_done >= kills[0]:
                        kills.pop(0)
                        door.kill()
                        door.start()

            progress = Killing()
            done = await fetch(
                world, [door.address], tmp_path / "out", progress=progress, patience=120
            )
            root = next(disk for disk in done.disks if disk.name == "root")
            assert root.bytes_received == 24 * BLOCK
            restored = [now for now in progress if now.phase == "restore"]
            assert restored[-1].bytes_done == 24 * BLOCK  # nothing was received twice

    asyncio.run(run())
    assert not kills
    assert (tmp_path / "out" / "root.raw").read_bytes() == image
    assert (tmp_path / "out" / "empty.raw").read_bytes() == bytes(BLOCK)


def test_a_host_that_died_goes_on_and_verifies_what_it_had(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = world.fill()
    made = world.ticket()
    monkeypatch.setattr(partial, "SYNC_BYTES", 4 * BLOCK)

    class Dead(BaseException):
        pass

    class Dying(list[Progress]):
        def append(self, now: Progress) -> None:
            if now.bytes_done >= 10 * BLOCK:
                raise Dead

    async def run() -> None:
        async with serving(world.start) as (address, _):
            with pytest.raises(Dead):
                await fetch(world, [address], tmp_path / "out", ticket=made, progress=Dying())
            # The last entry of the list of what is there was cut by the power.
            log = tmp_path / "out" / "root.raw.progress"
            with log.open("ab") as file:
                file.write(b"torn")
            progress: list[Progress] = []
            await fetch(world, [address], tmp_path / "out", ticket=made, progress=progress)
            assert progress[0].bytes_done == 8 * BLOCK

    asyncio.run(run())
    assert (tmp_path / "out" / "root.raw").read_bytes() == image


def test_bytes_that_a_dead_host_lost_are_not_published(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the list says is there is read back: a disk that lied is found out."""
    world.fill()
    monkeypatch.setattr(partial, "SYNC_BYTES", BLOCK)
    made = world.ticket()

    class Dead(BaseException):
        pass

    class Dying(list[Progress]):
        def append(self, now: Progress) -> None:
            if now.bytes_done >= 8 * BLOCK:
                raise Dead

    async def run() -> None:
        async with serving(world.start) as (address, _):
            with pytest.raises(Dead):
                await fetch(world, [address], tmp_path / "out", ticket=made, progress=Dying())
            with (tmp_path / "out" / "root.raw.partial").open("r+b") as file:
                file.write(bytes(4096))
            with pytest.raises(VerifyFailed):
                await fetch(world, [address], tmp_path / "out", ticket=made)
            assert not (tmp_path / "out" / "root.raw").exists()
            await fetch(world, [address], tmp_path / "out", ticket=made)

    asyncio.run(run())
    image = world.builder.model.images()["root"]
    assert (tmp_path / "out" / "root.raw").read_bytes() == image


def test_the_moment_stays_the_same_over_a_break(world: World, tmp_path: Path) -> None:
    """`latest-write` means another moment later; what was begun is gone on with as it was."""
    image = world.fill(8)
    made = world.ticket()

    async def run() -> None:
        way: Doorway
        async with serving(world.start) as (address, _):
            way = Doorway(address_of(address), world.tenant, world.credentials())
            async with await connect(way) as door:
                first = await door.open(made, "source-1", None)
            world.builder.write(0, 0, b"later" + bytes(507))
            world.builder.segment()
            async with await connect(way) as door:
                again = await door.open(made, "source-1", first.receipt)
                newest = None
            async with await connect(way) as door:
                newest = await door.open(made, "source-1", None)
            assert again.receipt == first.receipt
            assert newest.receipt.seq == first.receipt.seq + 1
            exact = world.ticket(at=first.receipt.selector)
            await fetch(world, [address], tmp_path / "out", ticket=exact)

    asyncio.run(run())
    assert (tmp_path / "out" / "root.raw").read_bytes() == image


def test_who_did_not_hear_of_the_end_may_ask_again(world: World, tmp_path: Path) -> None:
    """An answer may be lost after the last image has its name."""
    image = world.fill(4)
    made, out = world.ticket(), tmp_path / "out"

    async def run() -> None:
        async with serving(world.start) as (address, _):
            first = await fetch(world, [address], out, ticket=made)
            (out / "root.raw").write_bytes(image[:-1] + b"x")  # somebody uses it by now
            again = await fetch(world, [address], out, ticket=made)
            assert again.as_dict() == first.as_dict()
            with pytest.raises(TargetInUse):
                await fetch(world, [address], out, ticket=world.ticket())
            assert (out / "root.raw").read_bytes() == image[:-1] + b"x"
            # What was taken away is brought anew.
            for path in out.glob("*.raw"):
                path.unlink()
            await fetch(world, [address], out, ticket=made)
        assert (out / "root.raw").read_bytes() == image

    asyncio.run(run())


def test_another_door_is_tried(world: World, tmp_path: Path) -> None:
    world.fill(2)

    async def run() -> None:
        async with serving(world.start) as (address, _):
            await fetch(world, ["127.0.0.1:1", address], tmp_path / "out")

    asyncio.run(run())


def test_patience_ends(world: World, tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(DoorsAway) as caught:
            await fetch(world, ["127.0.0.1:1"], tmp_path / "out", patience=0.2)
        assert caught.value.retryable

    asyncio.run(run())


def test_nothing_in_the_way_is_replaced(world: World, tmp_path: Path) -> None:
    world.fill(2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "root.raw").write_bytes(b"precious")

    async def run() -> None:
        async with serving(world.start) as (address, _):
            with pytest.raises(TargetInUse):
                await fetch(world, [address], tmp_path / "out")

    asyncio.run(run())
    assert (tmp_path / "out" / "root.raw").read_bytes() == b"precious"
