"""Agent and ingest die at each of their failpoints while a guest writes. Afterwards they are
started again, and what the journal gives back equals the disk, which equals what the guest was
answered."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from host_agent.control.client import ask, socket_of
from host_agent.control.errors import AgentNotRunning, CommandRefused
from host_agent.wire.keys import TenantKey
from host_agent.wire.names import Identity
from infra.demo.processes import Process, tool
from tests.content import difference
from tests.failpoints.registry import failpoints, swept_elsewhere
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place, made_place
from tests.integration.site import DISK, GROUP, TENANT
from tests.lanes import pick, tried
from tests.restore.images import Images
from workers.journal.catalogue import choose_stream
from workers.journal.points import resolve
from workers.journal.reader import open_journal
from workers.storage.url import open_store

_DISK_BYTES = 4 * MIB
_DEATH_SECONDS = 60.0
#: After so long without a death the connection is made anew, seconds.
_CONNECTION_SECONDS = 4.0
_DRAIN_SECONDS = 60.0
#: How often each failpoint kills, at a later arrival each time.
ROUNDS = pick(1, 2, 20)
#: The store's failpoints are reached in ingest.
POINTS = {
    "agent": sorted(failpoints()["agent"] - swept_elsewhere()),
    "ingest": sorted(failpoints()["ingest"] | failpoints()["store"]),
}

#: The store's failpoints are passed by the probe at ingest's start: later arrivals are inside it.
_STORE_ARRIVALS = {
    "object_after_sync_before_link": 58,
    "object_after_link_before_directory_sync": 8,
    "object_after_directory_sync_before_answer": 58,
}
#: Reached while a new generation or a checkpoint is asked for.
_ASKED = {
    "generation_after_made_before_open": "resync",
    "state_after_written_before_named": "resync",
    "state_after_named_before_synced": "resync",
    "key_after_create_before_segment": "resync",
    "marker_after_placed_before_told": "checkpoint",
}
#: Passed once in an agent's life: each round kills there at the first arrival.
_ONCE = {
    "key_after_kept_before_hello",
    "keys_after_stored_before_tidied",
    "ring_after_open_before_key",
    *_ASKED,
}

pytestmark = [
    pytest.mark.invariant("I1", "I2", "I3", "I14"),
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("host points"),
]


class Guest(threading.Thread):
    """Writes without end, and knows what it was answered."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.model = bytearray(_DISK_BYTES)
        self._client = NbdClient(uri)
        self._rng = random.Random(5)
        self._go, self._ended = threading.Event(), threading.Event()
        self._turn = threading.Lock()

    def run(self) -> None:
        while not self._ended.is_set():
            if not self._go.wait(0.1):
                continue
            with self._turn:
                length = self._rng.choice([512, 4096, 4096, 32_768])
                at = self._rng.randrange(0, _DISK_BYTES - length, 512)
                data = self._rng.randbytes(length)
                self._client.write(at, data)
                self.model[at : at + length] = data
            time.sleep(0.004)

    def write_on(self) -> None:
        self._go.set()

    def rest(self) -> None:
        """Stop after the write that is on its way."""
        self._go.clear()
        with self._turn:
            self._client.flush()

    def leave(self) -> None:
        self._ended.set()
        self.join()
        self._client.close()


class Host:
    """A protected disk under a guest, whose agent and ingest are killed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        ingest_toml = place.site.setup.path("ingest.toml")
        quick = "asof_seconds = 0.3\ncommit_seconds_min = 0.1\n"
        ingest_toml.write_text(quick + ingest_toml.read_text())
        agent_toml = place.site.setup.path("agent.toml")
        agent_toml.write_text(agent_toml.read_text().replace("rpo_seconds = 5", "rpo_seconds = 1"))
        self._socket = socket_of(agent_toml)
        self.guest = Guest(place.protect())
        self.guest.start()
        key = place.site.setup.path("tenant.key").read_bytes()
        self._tenant_key = TenantKey.parse(key)

    def start_ingest(self, env: dict[str, str] | None = None) -> Process:
        """Start it, without waiting."""
        path = self.place.site.setup.path("ingest.toml")
        words: list[str | Path] = [tool("holdfast"), "ingest", "--config", path]
        self.place.site.ingest = self.place.processes.start("ingest", words, env=env)
        return self.place.site.ingest

    def start_agent(self, env: dict[str, str] | None = None) -> Process:
        """Start it, without waiting."""
        path = self.place.site.setup.path("agent.toml")
        words: list[str | Path] = [tool("holdfast-agent"), "run", "--config", path]
        self.place.site.agent = self.place.processes.start("agent", words, env=env)
        return self.place.site.agent

    def restart_ingest(self) -> None:
        """The agent has to connect again."""
        assert self.place.site.ingest is not None
        self.place.site.ingest.stop()
        self.start_ingest()

    def restart_agent(self) -> None:
        """Ingest is connected to again."""
        assert self.place.site.agent is not None
        self.place.site.agent.stop()
        self.start_agent()

    def ask(self, do: str) -> dict[str, Any]:
        """A command of the agent; nothing where it is not there."""
        try:
            return ask(self._socket, {"do": do, "group": GROUP}, seconds=5.0)
        except (AgentNotRunning, CommandRefused):
            return {}

    def drain(self) -> None:
        """Wait until all that is recorded is stored, and the stream records."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline:
            for now in self.ask("status").get("groups", []):
                if now["state"] == "recording" and now["stored"] == now["head"]:
                    return
            time.sleep(0.03)
        raise AssertionError(f"not everything was stored within {_DRAIN_SECONDS} s")

    def restored(self) -> bytes:
        """The newest state of the disk, from the bucket."""
        store = open_store(f"file://{self.place.bucket}")
        identity = choose_stream(store, TENANT, GROUP, None)
        assert isinstance(identity, Identity)
        with open_journal(store, identity, self._tenant_key) as journal:
            assert journal.damage is None, journal.damage
            return Images(journal).of(resolve(journal, "latest-write"))[DISK]

    def check(self) -> None:
        """Journal, disk and guest agree."""
        self.guest.rest()
        self.drain()
        disk = self.place.disk.read_bytes()
        assert difference(disk, bytes(self.guest.model)) == ""
        assert difference(self.restored(), disk) == ""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-points-") as folder,
        made_place(Path(folder), _DISK_BYTES) as place,
    ):
        made = Host(place)
        try:
            yield made
        finally:
            made.guest.leave()


def _kill_at(
    host: Host,
    start: Callable[[dict[str, str]], Process],
    point: str,
    arrival: int,
    reconnect: Callable[[], None],
) -> None:
    """Start a process that ends at the failpoint, and let the guest write until it did.

    A point that comes once a connection is reached again by connecting again.
    """
    process = start({"HOLDFAST_FAILPOINT": f"{point}:{arrival}"})
    host.guest.write_on()
    deadline = time.monotonic() + _DEATH_SECONDS
    patience = time.monotonic() + _CONNECTION_SECONDS
    while process.is_running and time.monotonic() < deadline:
        if point in _ASKED and host.ask("status"):
            host.ask(_ASKED[point])
        if arrival > 1 and time.monotonic() > patience:
            reconnect()
            patience = time.monotonic() + _CONNECTION_SECONDS
        time.sleep(0.05)
    assert process.popen.returncode == -signal.SIGKILL, process.tail()
    tried("kills at failpoints", 1)


@pytest.mark.parametrize("point", POINTS["agent"])
def test_an_agent_that_dies_there_loses_nothing(host: Host, point: str) -> None:
    for number in range(ROUNDS):
        agent = host.place.site.agent
        assert agent is not None
        agent.stop()
        arrival = 1 + number * (point not in _ONCE)
        _kill_at(host, host.start_agent, point, arrival, host.restart_ingest)
        host.start_agent()
        host.check()


@pytest.mark.parametrize("point", POINTS["ingest"])
def test_an_ingest_that_dies_there_loses_nothing(host: Host, point: str) -> None:
    for number in range(ROUNDS):
        ingest = host.place.site.ingest
        assert ingest is not None
        ingest.stop()
        arrival = _STORE_ARRIVALS.get(point, 1) + number * (point not in _ONCE)
        _kill_at(host, host.start_ingest, point, arrival, host.restart_agent)
        host.start_ingest()
        host.check()


def test_control_a_byte_that_was_never_recorded_is_noticed(host: Host) -> None:
    """Written behind the tap's back: the disk has it, guest and journal do not."""
    host.check()
    with host.place.disk.open("r+b") as disk:
        disk.seek(_DISK_BYTES - 512)
        before = disk.read(1)
        disk.seek(_DISK_BYTES - 512)
        disk.write(bytes([before[0] ^ 1]))
    with pytest.raises(AssertionError):
        host.check()
    with host.place.disk.open("r+b") as disk:
        disk.seek(_DISK_BYTES - 512)
        disk.write(before)
    host.check()
