"""Disks that may differ from the journal: compared with it, and only what differs is sent."""

from __future__ import annotations

import random
import shutil
import threading
from typing import Any

import pytest

from host_agent.wire.names import Identity, hashes_name
from infra.demo.processes import json_output, run, tool
from infra.demo.report import DemoFailed
from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place
from tests.integration.site import DISK, GROUP, TENANT
from workers.storage.url import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BLOCK = 64 << 10
FILLED = 16 * MIB


def make_hashes(place: Place) -> dict[str, Any]:
    """`holdfast journal hashes`, as an operator runs it."""
    words = ["journal", "hashes", "--store", f"file://{place.bucket}", "--tenant", TENANT]
    answer = json_output([tool("holdfast"), *words, "--key-file", place.folder / "tenant.key",
                          "--json"])  # fmt: skip
    (stream,) = answer["streams"]
    return dict(stream)


def fill(place: Place, uri: str, rng: random.Random) -> None:
    """Half of the blocks of the first 16 MiB."""
    with NbdClient(uri) as client:
        for at in range(0, FILLED, 2 * BLOCK):
            client.write(at, rng.randbytes(BLOCK))
    place.drain()


def host_counters(place: Place) -> dict[str, int]:
    counters = place.site.status()["counters"]
    return {name: int(counters[name]) for name in ("wire_bytes_sent", "sync_bytes_sent")}


def restart_host(place: Place, *, edit: bytes = b"", at: int = 0, kill: bool = False) -> None:
    """Agent and tap end and start again; in between somebody may change the disk."""
    site = place.site
    assert site.agent is not None
    assert site.tap is not None
    site.agent.stop()
    if kill:
        place.kill(site.tap)
    else:
        site.tap.stop()
    if edit:
        with place.disk.open("r+b") as file:
            file.seek(at)
            file.write(edit)
    (site.setup.path("run") / "tap.sock").unlink(missing_ok=True)
    site.start_host()
    site.attach()


@pytest.fixture
def filled(place: Place) -> Place:
    fill(place, place.protect(), random.Random(5))
    return place


@pytest.mark.invariant("I1", "I2")
def test_a_disk_edited_offline_costs_what_was_edited(filled: Place) -> None:
    """Writes after the list are not believed to be the same either."""
    made = make_hashes(filled)
    assert made["blocks"] == FILLED // BLOCK // 2
    with NbdClient(filled.uri) as client:
        client.write(6 * BLOCK, b"after the list" * 512)
        client.write(60 * MIB, bytes(4096))
    filled.drain()
    edit = random.Random(6).randbytes(2 * BLOCK)
    restart_host(filled, edit=edit, at=4 * BLOCK + 512)
    now = filled.drain()
    compared = now["last_comparison"]
    assert (compared["phase"], compared["reason"]) == ("done", None)
    # What was edited touches three blocks; two were written after the list was made.
    assert now["counters"]["sync_bytes_sent"] <= 5 * BLOCK
    assert now["counters"]["sync_bytes_sent"] >= len(edit)
    filled.site.checkpoint("after")
    source = filled.lose()
    assert difference(filled.export("tag:after"), source) == ""


@pytest.mark.invariant("I1", "I2", "I3")
def test_a_killed_tap_is_compared_while_the_guest_writes(filled: Place) -> None:
    """Old checkpoints stay good, and none is made before the sync is over."""
    make_hashes(filled)
    filled.site.checkpoint("before")
    before = filled.disk.read_bytes()
    filled.kill(filled.site.ingest)
    restart_host(filled, kill=True)
    uri = filled.site.attach()
    with pytest.raises(DemoFailed, match="the stream is"):
        filled.site.checkpoint("too early", wait=False)
    filled.site.start_ingest()
    rng, is_over = random.Random(7), threading.Event()

    def guest() -> None:
        with NbdClient(uri) as client:
            while not is_over.is_set():
                client.write(rng.randrange(0, FILLED // 8, 512), rng.randbytes(512))

    thread = threading.Thread(target=guest)
    thread.start()
    try:
        now = filled.site.wait_protected(lambda _now: None)
    finally:
        is_over.set()
        thread.join()
    filled.drain()
    filled.site.checkpoint("after")
    assert now["counters"]["sync_bytes_sent"] <= FILLED // 8 + 2 * BLOCK
    source = filled.lose()
    assert difference(filled.export("tag:before"), before) == ""
    assert difference(filled.export("tag:after"), source) == ""


@pytest.mark.invariant("I2")
def test_a_host_that_lost_its_state_begins_over_what_the_journal_has(filled: Place) -> None:
    """A disk that is there already: its first sync compares instead of sending all."""
    make_hashes(filled)
    site = filled.site
    assert site.agent is not None
    assert site.tap is not None
    site.agent.stop()
    site.tap.stop()
    shutil.rmtree(site.setup.path("tap"))
    shutil.rmtree(site.setup.path("agent-state"), ignore_errors=True)
    site.start_host()
    site.attach()
    now = filled.drain()
    assert now["last_comparison"]["phase"] == "done"
    assert now["counters"]["sync_bytes_sent"] == 0
    filled.site.checkpoint("after")
    source = filled.lose()
    assert difference(filled.export("tag:after"), source) == ""


@pytest.mark.invariant("I2")
def test_a_list_of_another_place_is_not_believed(filled: Place) -> None:
    """The control: its hashes would call blocks the same that were written since."""
    made = make_hashes(filled)
    with NbdClient(filled.uri) as client:
        client.write(0, b"newer" * 4096)
    filled.drain()
    store, identity = open_store(f"file://{filled.bucket}"), Identity(TENANT, GROUP, "host1")
    identity = Identity(TENANT, GROUP, filled.site.setup.host)
    forged = made["place"] + 1
    for part in (1, 0):
        data = store.get(hashes_name(identity, made["place"], part))
        store.put_if_absent(hashes_name(identity, forged, part), data)
    run(filled.site.agent_command("sync", GROUP, "--yes", "--json"))
    now = filled.drain()
    assert now["last_comparison"]["phase"] == "given_up"
    assert "another place" in now["last_comparison"]["reason"]
    assert now["counters"]["sync_bytes_sent"] >= FILLED // 2
    source = filled.lose()
    assert difference(filled.export("latest-write"), source) == ""


@pytest.mark.invariant("I2")
def test_a_forced_sync_finds_what_nobody_recorded(filled: Place) -> None:
    """Somebody wrote past the tap: the journal is repaired by what differs, or by all with --full;
    without a list everything is sent, and it says why."""
    with filled.disk.open("r+b") as file:
        file.seek(2 * BLOCK)
        file.write(b"past the tap")
    run(filled.site.agent_command("sync", GROUP, "--disk", DISK, "--json"))
    now = filled.drain()
    assert "no hash list" in now["last_comparison"]["reason"]
    sent = now["counters"]["sync_bytes_sent"]
    assert sent >= FILLED // 2
    make_hashes(filled)
    with filled.disk.open("r+b") as file:
        file.seek(12 * BLOCK)
        file.write(b"and again")
    run(filled.site.agent_command("sync", GROUP, "--json"))
    now = filled.drain()
    assert now["last_comparison"]["phase"] == "done"
    assert 0 < now["counters"]["sync_bytes_sent"] - sent <= 2 * BLOCK
    filled.site.checkpoint("repaired")
    run(filled.site.agent_command("sync", GROUP, "--full", "--json"))
    now = filled.drain()
    assert now["counters"]["sync_bytes_sent"] - sent >= FILLED // 2
    source = filled.lose()
    assert difference(filled.export("tag:repaired"), source) == ""
