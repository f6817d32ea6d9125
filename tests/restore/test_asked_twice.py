"""A host that is asked for the same restore again, by a manager that had lost its connection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from host_agent.control.host_settings import InventoryConfig
from host_agent.control.reach import Reach
from host_agent.control.restoring import Restoring
from host_agent.recovery.errors import TargetInUse
from host_agent.wire.control import Restore
from tests.restore.door import World, serving

OPERATION = "op_01j8ed3z2eff2e9mrz1vkd5k27"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_restore_that_runs_or_is_over_is_not_begun_again(world: World) -> None:
    wanted = world.fill()
    folder = world.folder / "out"
    told: list[str] = []

    async def run() -> None:
        async with serving(world.start) as (address, service):
            restoring = Restoring(
                world.credentials(), Reach(InventoryConfig(recovery=(world.folder,)))
            )
            body = Restore(OPERATION, world.ticket(), [address], str(folder))
            first, second = await asyncio.gather(
                restoring.run(body, lambda _share, _step: told.append("first")),
                restoring.run(body, lambda _share, _step: told.append("second")),
            )
            assert first == second == await restoring.run(body, lambda *_: None)
            assert service.status()["opened"] == 1
            # Another ticket into that folder is another restore: what is there is not replaced.
            other = Restore(OPERATION, world.ticket(), [address], str(folder))
            with pytest.raises(TargetInUse):
                await restoring.run(other, lambda *_: None)
            # What failed is begun again.
            for image in folder.glob("*.raw"):
                image.rename(world.folder / image.name)
            await restoring.run(other, lambda *_: None)

    asyncio.run(run())
    assert (world.folder / "root.raw").read_bytes() == wanted
    assert (folder / "root.raw").read_bytes() == wanted
    assert set(told) == {"second"}, "whoever asked last hears how far it is"
