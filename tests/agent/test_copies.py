"""The copies that are made of each write: remote journal, local journal, analyser, in any choice.

A copy that is on holds everything; one that is off produces not a byte.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from infra.demo.processes import Process, free_port, run, tool
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place, made_place
from tests.integration.site import GROUP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

COPIES = ("remote", "journal", "analyser")
CHOICES = [
    frozenset(chosen) for count in range(4) for chosen in itertools.combinations(COPIES, count)
]
_SECONDS = 30.0


@dataclass
class Copied:
    """A site whose agent makes the chosen copies."""

    place: Place
    local: Path
    local_ingest: Process

    def group(self) -> dict[str, Any]:
        """What `holdfast-agent status` says of the group."""
        return self.place.site.status()

    def tap_group(self) -> dict[str, Any]:
        """What the tap says of the group."""
        tap: dict[str, Any] = self.group()["tap"]
        return tap

    def export(self, bucket: Path, name: str) -> bytes:
        """The disk of the newest write, from one of the journals."""
        safe = replace(self.place.safe, store=f"file://{bucket}")
        return safe.export("latest-write", self.place.folder / name).image.read_bytes()


def start_local(place: Place) -> Process:
    """The second ingest: the journal manager of the protected site."""
    config = place.site.setup.path("local.toml")
    argv: list[str | Path] = [tool("holdfast"), "ingest", "--config", config]
    return place.processes.start("local-ingest", argv)


@contextmanager
def copied(folder: Path, chosen: frozenset[str]) -> Iterator[Copied]:
    """Both ingests run whatever is chosen: what is off must not be used although it is there."""
    with made_place(folder, 8 * MIB) as place:
        local, port = folder / "local", free_port()
        local.mkdir()
        setup = place.site.setup
        remote_toml = setup.path("ingest.toml").read_text()
        local_toml = remote_toml.replace(f":{setup.port}", f":{port}")
        local_toml = local_toml.replace(str(place.bucket), str(local))
        setup.path("local.toml").write_text(local_toml)
        agent = setup.path("agent.toml").read_text()
        sink = agent[agent.index("[ingest]") : agent.index("[tap]")]
        sink = sink.replace("[ingest]", "[journal]").replace(f":{setup.port}", f":{port}")
        agent = agent.replace("[tap]", sink + "[tap]")
        wanted = ", ".join(f'"{copy}"' for copy in sorted(chosen))
        setup.path("agent.toml").write_text(agent + f"ring_mib = 8\ncopies = [{wanted}]\n")
        place.site.start_ingest()
        ingest = start_local(place)
        place.site.start_host()
        place.uri = place.site.attach()
        yield Copied(place, local, ingest)


def write_some(site: Copied) -> bytes:
    """Write through the tap once everything is in the ring; the disk's content."""
    wait(site, lambda: site.tap_group()["state"] == "recording", "recording")
    with NbdClient(site.place.uri) as client:
        for at in range(64):
            client.write(at * 65536, bytes([at + 1]) * 4096)
        client.flush()
    tap = site.tap_group
    wait(site, lambda: tap()["freed"] == tap()["head"], "everything copied and given back")
    return site.place.disk.read_bytes()


def wait(site: Copied, is_so: Any, what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not is_so():
        assert time.monotonic() < deadline, (what, site.group())
        time.sleep(0.1)


def stored(bucket: Path) -> int:
    """Bytes of the tenant's objects in a bucket."""
    return sum(path.stat().st_size for path in (bucket / "acme").rglob("*") if path.is_file())


def complaints(site: Copied, chosen: frozenset[str], source: bytes) -> list[str]:
    """What is there and should not be, or is not and should."""
    found = []
    for copy, bucket in (("remote", site.place.bucket), ("journal", site.local)):
        if copy not in chosen:
            found += [f"{copy} is off and has bytes"] if stored(bucket) else []
        elif not stored(bucket):
            found += [f"{copy} is on and has no byte"]
        elif site.export(bucket, copy) != source:
            found += [f"{copy} differs from the source"]
    analysis = site.group()["analysis"]
    if ("analyser" in chosen) != bool(analysis):
        found += [f"the analyser says {analysis!r:.60}"]
    return found


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "+".join(sorted(chosen)) or "none")
def test_a2_each_choice_of_copies_makes_those_and_no_byte_more(
    folder: Path, chosen: frozenset[str]
) -> None:
    with copied(folder, chosen) as site:
        source = write_some(site)
        assert complaints(site, chosen, source) == []
        group = site.group()
        assert group["copies"] == sorted(chosen)
        if chosen & {"remote", "journal"}:
            assert group["phase"] == "streaming"
        else:
            assert group["phase"] == "unprotected"
        if "analyser" in chosen:
            [disk] = group["analysis"]
            assert disk["disk"] == "disk"
            assert disk["written_bytes"] == 64 * 4096


def test_a2_control_the_check_sees_every_copy_that_should_not_be(folder: Path) -> None:
    with copied(folder, frozenset(COPIES)) as site:
        source = write_some(site)
        assert len(complaints(site, frozenset(), source)) == 3


def test_both_journals_hold_a_checkpoint_that_was_waited_for(folder: Path) -> None:
    with copied(folder, frozenset({"remote", "journal"})) as site:
        write_some(site)
        made = site.place.site.checkpoint("both")
        assert made["stored"]
        for bucket in (site.place.bucket, site.local):
            safe = replace(site.place.safe, store=f"file://{bucket}")
            assert "both" in str(safe.points())


def test_the_ring_waits_for_the_slower_journal(folder: Path) -> None:
    with copied(folder, frozenset({"remote", "journal"})) as site:
        write_some(site)
        site.local_ingest.stop()
        with NbdClient(site.place.uri) as client:
            client.write(0, b"x" * 4096)
        wait(site, lambda: site.group()["stored"] == site.group()["head"], "the remote has it")
        assert site.tap_group()["freed"] < site.tap_group()["head"]
        start_local(site.place)
        tap = site.tap_group
        wait(site, lambda: tap()["freed"] == tap()["head"], "the local one has it too")
        source = site.place.disk.read_bytes()
        assert complaints(site, frozenset({"remote", "journal", "analyser"}), source) == [
            "the analyser says None"
        ]


def test_a_group_without_a_journal_refuses_checkpoints(folder: Path) -> None:
    with copied(folder, frozenset()) as site:
        done = run(site.place.site.agent_command("checkpoint", GROUP), allowed=range(256))
        assert done.returncode == 1
        assert "neither a remote nor a local journal" in done.stderr
