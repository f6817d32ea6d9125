"""The agent as a process: its commands, its answers, what it says when something is wrong.

A tap in this process behind real sockets, a real ingest, a real `holdfast-agent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from host_agent.control.tap_client import TapStream, connect
from infra.demo.processes import Process, Processes, free_port, tool
from infra.dev_keys import DevSetup, write_dev_setup
from tests.agent.line import start_ingest
from tests.agent.tap_server import TapServer
from tests.integration.site import GROUP, TENANT
from tests.stream.fake_tap import FakeTap
from tests.stream.harness import in_loop


@dataclass
class Host:
    """A host with one agent."""

    folder: Path
    setup: DevSetup
    processes: Processes
    server: TapServer
    agent: Process | None = None

    @property
    def tap(self) -> FakeTap:
        return self.server.tap

    def command(self, *words: str) -> list[str]:
        config = str(self.setup.path("agent.toml"))
        return [str(tool("holdfast-agent")), *words, "--config", config]

    async def say(self, *words: str, allowed: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command beside the loop, which serves the tap."""
        done = await asyncio.to_thread(
            subprocess.run, self.command(*words), capture_output=True, text=True, timeout=30
        )
        assert done.returncode == allowed, (done.stdout, done.stderr, self.log())
        assert "Traceback" not in done.stderr
        return done

    async def ask(self, *words: str, allowed: int = 0) -> dict[str, Any]:
        return dict(json.loads((await self.say(*words, "--json", allowed=allowed)).stdout))

    async def group(self) -> dict[str, Any]:
        return dict((await self.ask("status"))["groups"][0])

    async def until(self, what: Callable[[dict[str, Any]], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not what(now := await self.group()):
            assert time.monotonic() < deadline, (now, self.log())
            await asyncio.sleep(0.05)

    def log(self) -> str:
        return self.agent.log.read_text() if self.agent else ""

    async def start_agent(self) -> None:
        words = [str(tool("holdfast-agent")), "run", "--config", str(self.setup.path("agent.toml"))]
        self.agent = self.processes.start("agent", words)
        path = self.setup.path("agent") / "agent.sock"
        deadline = time.monotonic() + 20
        while not _answers(path):
            self.agent.require()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def protect(self) -> dict[str, Any]:
        start_ingest(self.setup, self.processes)
        await self.start_agent()
        answer = await self.ask("attach", GROUP, "disk", "--disk", "disk.raw")
        await self.until(lambda now: now["state"] == "recording" and now["stored"] == now["head"])
        return answer


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.asynccontextmanager
async def made_host(folder: Path) -> AsyncIterator[Host]:
    """Files and a tap; the agent and ingest when the test wants them."""
    (folder / "logs").mkdir()
    setup = DevSetup(folder / "s", tenant=TENANT, group=GROUP, port=free_port())
    write_dev_setup(setup, datetime.now(UTC))
    config = setup.path("agent.toml")
    config.write_text(config.read_text().replace("autostart = true", "autostart = false"))
    processes = Processes(folder / "logs")
    server = TapServer(setup.path("run"), FakeTap(ring_bytes=8 << 20, has_wall_clock=True))
    await server.start()
    try:
        yield Host(folder, setup, processes, server)
    finally:
        await asyncio.to_thread(processes.stop_all)
        await server.stop()
        server.tap.close()


@in_loop
async def test_attach_checkpoint_status_detach(folder: Path) -> None:
    async with made_host(folder) as host:
        attached = await host.protect()
        assert attached["uri"].startswith("nbd+unix:///demo%2Fdisk?socket=")
        assert host.server.attached[0]["path"] == str(Path("disk.raw").absolute())
        host.tap.write(0, b"w" * 4096)
        made = await host.ask("checkpoint", GROUP, "--tag", "before", "--wait")
        assert made["stored"]
        assert made["kind"] == "tagged"
        now = await host.group()
        assert now["stored"] >= made["seq"]
        assert now["rpo_met"]
        assert now["held_up_by"] is None
        assert now["counters"]["records_held"] == now["head"] - now["stored"]
        text = (await host.say("status")).stdout
        assert "recovery point" in text
        assert "held up" not in text
        text = (await host.say("attach", GROUP, "disk", "--disk", "disk.raw")).stdout
        for word in ("reconnect-delay", "driver=raw", "type='raw'", "nbd+unix:"):
            assert word in text
        await host.say("detach", GROUP, "disk")
        assert not host.server.attached


@in_loop
async def test_what_a_person_gets_wrong_is_a_sentence(folder: Path) -> None:
    async with made_host(folder) as host:
        missing = await host.say("status", allowed=1)
        assert "is not there" in missing.stderr
        assert "holdfast-agent run" in missing.stderr
        await host.protect()
        unknown = await host.ask("attach", "other", "disk", "--disk", "d", allowed=1)
        assert unknown["error"] == "unknown_group"
        assert "demo" in unknown["hint"]
        tag = await host.ask("checkpoint", GROUP, "--tag", "a\nb", allowed=1)
        assert tag["error"] == "bad_request"
        # Paused, nothing brings the new generation over before the question is asked.
        await host.ask("pause", GROUP)
        await host.ask("pause", GROUP)  # else the sync may be over before the next command
        host.tap.new_generation("forced")
        dirty = await host.ask("checkpoint", GROUP, allowed=1)
        assert dirty["error"] in ("not_recording", "not_attached", "tap_gone")
        await host.say("nonsense", allowed=2)
        second = subprocess.run(host.command("run"), capture_output=True, text=True, timeout=20)
        assert second.returncode == 1
        assert "Another agent" in second.stderr


@in_loop
async def test_a_checkpoint_that_is_not_stored_in_time_says_so(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        await host.ask("pause", GROUP)
        late = await host.ask("checkpoint", GROUP, "--wait", "--timeout", "0.3", allowed=1)
        assert late["error"] == "checkpoint_not_stored"
        assert "paused" in late["message"]
        await host.ask("resume", GROUP)
        await host.until(lambda now: now["stored"] == now["head"])


@in_loop
async def test_a_pause_outlives_the_agent(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        await host.ask("pause", GROUP)
        assert host.agent is not None
        await asyncio.to_thread(host.agent.stop)
        await host.start_agent()
        host.tap.write(0, b"p" * 512)
        await asyncio.sleep(0.5)
        now = await host.group()
        assert (now["phase"], now["held_up_by"]) == ("paused", "paused")
        assert now["stored"] < now["head"]
        await host.ask("resume", GROUP)
        await host.until(lambda now: now["stored"] == now["head"])


@in_loop
async def test_a_limit_changes_at_once_and_is_kept_until_a_restart(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        text = (await host.say("limit", GROUP, "--replication", "8")).stdout
        first, *others = text.strip().split(", ")
        assert first == "group demo: replication 8.0 Mbit/s"
        assert others == ["syncs unlimited", "comparisons unlimited of disk"]
        limits = (await host.group())["limits"]
        assert limits["replication_bytes_per_second"] == 1_000_000
        before, began = host.tap.ring.head, time.monotonic()
        for at in range(0, 240, 60):
            host.tap.write(at * 1024, os.urandom(60 * 1024))
        for _ in range(40):
            host.tap.write(0, os.urandom(64 * 1024))
        await host.until(lambda now: now["stored"] == now["head"] > before)
        assert time.monotonic() - began > 2.0, "2.8 MB at a megabyte a second"
        await host.say("limit", GROUP, "--replication", "none", "--sync", "0.8")
        limits = (await host.group())["limits"]
        assert limits["replication_bytes_per_second"] is None
        assert limits["sync_bytes_per_second"] == 100_000
        await host.say("limit", GROUP, "--sync", "0", allowed=1)
        await host.say("limit", GROUP, "--sync", "much", allowed=2)


@pytest.mark.invariant("I2")
@in_loop
async def test_a_killed_agent_goes_on_from_the_ring(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        generation = (await host.group())["generation"]
        for _ in range(3):
            assert host.agent is not None
            host.agent.popen.send_signal(signal.SIGKILL)
            await asyncio.to_thread(host.agent.popen.wait)
            host.tap.write(4096, os.urandom(4096))
            await host.start_agent()
        await host.until(lambda now: now["stored"] == now["head"] == host.tap.ring.head)
        assert (await host.group())["generation"] == generation


@pytest.mark.invariant("I7")
@in_loop
async def test_another_opener_of_the_stream_stops_it_with_an_alert(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        other = TapStream(await connect(host.setup.path("run") / f"{GROUP}.stream"))
        os.close((await other.open()).descriptor)
        await host.until(lambda now: now["phase"] == "stopped")
        now = await host.group()
        assert now["alert"]["code"] == "replaced"
        opens = host.server.verbs.count("open")
        await asyncio.sleep(1.0)
        assert host.server.verbs.count("open") == opens, "no fight over the ring"
        await other.close()
        await host.ask("resume", GROUP)
        await host.until(lambda now: now["phase"] == "streaming")


@in_loop
async def test_a_restarted_tap_is_no_thief(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        attached = host.server.attached
        await host.server.stop()
        host.server = TapServer(host.setup.path("run"), host.tap, pid=4712)
        await host.server.start()
        host.server._listen(f"{GROUP}.stream", host.server._stream)
        host.server.attached = attached
        host.tap.write(0, b"r" * 512)
        await host.until(lambda now: now["head"] and now["stored"] == now["head"])
        assert (await host.group())["phase"] == "streaming"


@in_loop
async def test_the_socket_is_the_owners_and_survives_nonsense(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.start_agent()
        path = host.setup.path("agent") / "agent.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        for data in (b"\n", b"[]\n", b"\xff\n", b'{"do":3}\n', b"x" * 200_000 + b"\n"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(path))
                with contextlib.suppress(OSError):
                    sock.sendall(data)
                    said = sock.recv(65536)
                    assert said == b"" or json.loads(said)["ok"] is False
        assert (await host.ask("status"))["tenant"] == TENANT


@in_loop
async def test_memory_stays_small(folder: Path) -> None:
    async with made_host(folder) as host:
        await host.protect()
        for _ in range(20):
            host.tap.write(0, os.urandom(200_000 // 512 * 512))
            await asyncio.sleep(0.01)
        await host.until(lambda now: now["stored"] == now["head"])
        assert (await host.ask("status"))["memory_bytes"] < 120 << 20
