"""The QMP client against a server that answers, refuses, stays silent, or goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from host_agent.hypervisor import qmp
from host_agent.hypervisor.errors import QmpGone, QmpRefused
from host_agent.hypervisor.qmp import Monitor, Monitors
from tests.hypervisor.fake_qmp import FakeQmp

Script = Callable[[FakeQmp, Monitor], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_GREETING_SECONDS", 0.2)
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 0.3)


def play(folder: Path, script: Script, *, greets: bool = True) -> None:
    async def main() -> None:
        server = FakeQmp(folder / "qmp")
        server.greets = greets
        await server.start()
        monitor = Monitor(server.path)
        try:
            await script(server, monitor)
        finally:
            await monitor.close()
            await server.stop()

    asyncio.run(main())


def test_answers_and_refusals(folder: Path) -> None:
    async def script(server: FakeQmp, monitor: Monitor) -> None:
        server.answers = {"query-name": {"name": "a"}, "cont": "it burns"}
        told = await asyncio.gather(*(monitor.execute("query-name") for _ in range(20)))
        assert told == [{"name": "a"}] * 20
        assert monitor.version == "9.1.2"
        with pytest.raises(QmpRefused, match="it burns"):
            await monitor.execute("cont", a=1)
        assert server.asked[0][0] == "qmp_capabilities"
        assert server.asked[-1] == ("cont", {"a": 1})

    play(folder, script)


def test_events_reach_all_who_listen_and_the_end_is_one(folder: Path) -> None:
    async def script(server: FakeQmp, monitor: Monitor) -> None:
        heard: list[Any] = []
        stop = monitor.listen(heard.append)
        other: list[Any] = []
        monitor.listen(other.append)
        await monitor.execute("query-name")
        server.tell("RESET", guest=True)
        await monitor.execute("query-name")
        assert [event["event"] for event in heard] == ["RESET"]
        stop()
        server.hang_up()
        await asyncio.sleep(0.05)
        assert len(heard) == 1
        assert other[-1] is None
        await monitor.execute("query-name")

    play(folder, script)


def test_a_socket_that_another_client_has_is_named(folder: Path) -> None:
    async def script(_server: FakeQmp, monitor: Monitor) -> None:
        with pytest.raises(QmpGone, match="does not greet") as caught:
            await monitor.execute("query-name")
        assert "one client at a time" in caught.value.hint

    play(folder, script, greets=False)


def test_a_machine_that_hangs_or_talks_nonsense_is_gone(folder: Path) -> None:
    async def script(server: FakeQmp, monitor: Monitor) -> None:
        server.silent = {"query-status"}
        with pytest.raises(QmpGone, match="did not answer query-status"):
            await monitor.execute("query-status")
        waiting = asyncio.create_task(monitor.execute("query-name"))
        server.on_command = lambda name: server.send(b"{nonsense\n") if name == "stop" else None
        await waiting
        server.silent = {"stop"}
        with pytest.raises(QmpGone):
            await monitor.execute("stop")

    play(folder, script)


def test_nobody_there(folder: Path) -> None:
    async def main() -> None:
        monitors = Monitors()
        with pytest.raises(QmpGone, match="No QEMU answers"):
            await monitors.of(folder / "nothing").execute("query-name")
        assert monitors.of(folder / "nothing") is monitors.of(folder / "nothing")
        assert monitors.paths == [folder / "nothing"]
        await monitors.close()

    asyncio.run(main())
