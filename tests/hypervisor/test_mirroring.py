"""The doing part over a QMP server and a tap that a test plays: what is asked, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from host_agent.hypervisor.errors import OtherMachine, QmpGone, QmpRefused
from host_agent.hypervisor.machine import MachineId
from host_agent.hypervisor.mirror import TapView
from host_agent.hypervisor.mirroring import Means, Mirroring, Spec
from host_agent.hypervisor.qmp import Monitor
from tests.hypervisor.fake_qmp import FakeQmp

MIB = 1 << 20
UUID = "6b1c6a5c-9d1c-4b1c-8f3a-0c1d2e3f4a5b"


class FakeTap:
    """The tap's rules about rounds, without a tap."""

    def __init__(self) -> None:
        self.round, self.needs, self.clients = 1, "all", 0
        self.acts: list[str] = []

    async def act(self, act: str, **fields: int) -> TapView:
        if act != "look":
            self.acts.append(act)
        if act == "begin":
            self.needs = "rest"
        if act == "confirm":
            assert fields["round"] == self.round
            self.needs = "nothing"
        if act == "lost":
            self.lose()
        return TapView(
            self.round, self.clients, self.needs, "syncing", "disk_added", 0, 64 * MIB, 0
        )

    def lose(self) -> None:
        self.round += 1
        self.needs = "rest" if self.needs == "nothing" else self.needs

    async def close(self) -> None:
        self.acts.append("close")


class Play:
    """A machine with a disk, as its QMP answers, and one mirror of it."""

    def __init__(self, folder: Path) -> None:
        self.qmp = FakeQmp(folder / "qmp")
        self.tap = FakeTap()
        self.monitor = Monitor(self.qmp.path)
        self.mirroring = self.make()
        self.qmp.on_command = self._on_command
        self.job: dict[str, Any] | None = None
        self.has_target = False
        self._show()
        self.qmp.answers["query-uuid"] = {"UUID": UUID}
        self.qmp.answers["query-name"] = {"name": "shop"}

    def make(self) -> Mirroring:
        async def connect() -> FakeTap:
            return self.tap

        spec = Spec("vda", self.qmp.path, "disk0", MachineId(UUID, "shop"))
        return Mirroring(spec, Means(self.monitor, connect, "/run/g.nbd", lambda: None))

    def _show(self) -> None:
        nodes: list[dict[str, Any]] = [
            {"node-name": "disk0", "drv": "raw", "image": {"virtual-size": 8 * MIB}}
        ]
        if self.has_target:
            nodes.append({"node-name": self.mirroring.names.target, "drv": "nbd"})
        self.qmp.answers["query-named-block-nodes"] = nodes
        self.qmp.answers["query-block-jobs"] = [self.job] if self.job else []

    def _on_command(self, name: str) -> None:
        if isinstance(self.qmp.answers.get(name), str):
            return
        if name == "blockdev-add":
            self.has_target = True
            self.tap.clients = 1
            self.tap.lose()
        elif name == "blockdev-del":
            self.has_target = False
            self.tap.clients = 0
            self.tap.lose()
        elif name == "blockdev-mirror":
            self.set_job(ready=True, offset=8 * MIB)
        elif name == "block-job-cancel":
            self.job = None
        elif name == "block-job-resume":
            self.set_job(ready=True, offset=8 * MIB)
        self._show()

    def set_job(self, **changes: Any) -> None:
        self.job = {
            "device": self.mirroring.names.job, "status": "ready", "ready": False, "paused": False,
            "io-status": "ok", "len": 8 * MIB, "offset": 0, "speed": 0, **changes,
        }  # fmt: skip
        self._show()

    def asked(self, name: str) -> list[dict[str, Any]]:
        return [given for command, given in self.qmp.asked if command == name]

    async def until(self, health: str) -> None:
        async with asyncio.timeout(10):
            while self.mirroring.health != health:
                await asyncio.sleep(0.01)


Script = Callable[[Play], Awaitable[None]]


def play(folder: Path, script: Script) -> None:
    async def main() -> None:
        made = Play(folder)
        await made.qmp.start()
        task = asyncio.create_task(made.mirroring.run())
        try:
            await script(made)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await made.monitor.close()
            await made.qmp.stop()

    asyncio.run(main())


def test_a_mirror_begins_as_the_tap_expects_it(folder: Path) -> None:
    async def script(made: Play) -> None:
        await made.mirroring.wait_begun(5)
        await made.until("mirrored")
        (target,) = made.asked("blockdev-add")
        assert target["server"] == {"type": "unix", "path": "/run/g.nbd"}
        assert target["export"] == "vda"
        assert "reconnect-delay" not in target
        (job,) = made.asked("blockdev-mirror")
        assert (job["sync"], job["copy-mode"]) == ("full", "write-blocking")
        assert (job["on-target-error"], job["device"]) == ("stop", "disk0")
        assert job["job-id"] == made.mirroring.names.job
        assert made.tap.acts[:2] == ["begin", "confirm"]

    play(folder, script)


def test_a_job_that_runs_already_is_taken_over(folder: Path) -> None:
    async def script(made: Play) -> None:
        await made.until("mirrored")
        assert made.asked("blockdev-mirror") == made.asked("block-job-cancel") == []
        assert "begin" not in made.tap.acts

    async def main() -> None:
        made = Play(folder)
        made.tap.needs, made.tap.clients, made.has_target = "rest", 1, True
        made.set_job(ready=True, offset=8 * MIB)
        await made.qmp.start()
        task = asyncio.create_task(made.mirroring.run())
        try:
            await script(made)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await made.monitor.close()
            await made.qmp.stop()

    asyncio.run(main())


def test_what_qemu_refuses_is_told_and_tried_again(folder: Path) -> None:
    async def script(made: Play) -> None:
        with pytest.raises(QmpRefused, match="in use"):
            await made.mirroring.wait_begun(5)
        assert made.mirroring.health == "unprotected"
        failure = made.mirroring.describe()["failure"]
        assert failure is not None
        assert failure["error"] == "qmp_refused"
        del made.qmp.answers["blockdev-mirror"]
        await made.until("mirrored")
        assert made.asked("blockdev-del"), "the target of the first try was removed"

    async def begin(made: Play) -> None:
        made.qmp.answers["blockdev-mirror"] = "node disk0 is in use"
        await script(made)

    play(folder, begin)


def test_a_failed_job_is_known_at_once_and_resumed(folder: Path) -> None:
    async def script(made: Play) -> None:
        await made.until("mirrored")
        made.tap.lose()
        made.set_job(ready=True, paused=True, status="standby", **{"io-status": "failed"})
        made.qmp.tell("BLOCK_JOB_ERROR", device=made.mirroring.names.job, action="stop")
        async with asyncio.timeout(5):
            while not made.asked("block-job-resume"):
                await asyncio.sleep(0.01)
        await made.until("mirrored")
        assert made.mirroring.describe()["losses"] == 1
        assert made.asked("blockdev-mirror")[1:] == []

    play(folder, script)


def test_a_job_that_somebody_ended_is_withdrawn_and_begun_again(folder: Path) -> None:
    async def script(made: Play) -> None:
        await made.until("mirrored")
        made.job = None
        made._show()
        made.qmp.tell("BLOCK_JOB_CANCELLED", device=made.mirroring.names.job)
        async with asyncio.timeout(5):
            while made.asked("blockdev-mirror")[1:] == []:
                await asyncio.sleep(0.01)
        await made.until("mirrored")
        assert made.tap.acts.index("lost") < len(made.tap.acts) - 2
        loss = made.mirroring.describe()["last_loss"]
        assert loss is not None
        assert loss["why"] == "somebody cancelled the mirror job"

    play(folder, script)


def test_a_machine_that_went_away_is_unprotected_and_the_tap_knows(folder: Path) -> None:
    async def script(made: Play) -> None:
        await made.until("mirrored")
        await made.qmp.stop()
        await made.until("unprotected")
        async with asyncio.timeout(5):
            while made.tap.needs == "nothing":
                await asyncio.sleep(0.01)
        assert isinstance(made.mirroring.failure, QmpGone)
        made.job, made.has_target, made.tap.clients = None, False, 0
        made._show()
        made.qmp.path.unlink(missing_ok=True)
        await made.qmp.start()
        await made.until("mirrored")
        assert len(made.asked("blockdev-mirror")) == 2

    play(folder, script)


def test_another_machine_at_the_socket_is_left_alone(folder: Path) -> None:
    async def script(made: Play) -> None:
        made.qmp.answers["query-name"] = {"name": "payroll"}
        with pytest.raises(OtherMachine, match="payroll"):
            await made.mirroring.wait_begun(5)
        assert made.asked("blockdev-add") == []
        assert made.mirroring.health == "unprotected"

    play(folder, script)


def test_the_end_leaves_nothing_at_qemu(folder: Path) -> None:
    async def script(made: Play) -> None:
        await made.until("mirrored")
        await made.mirroring.end()
        assert made.job is None
        assert not made.has_target
        assert made.asked("block-job-cancel")[0]["force"] is True

    play(folder, script)
