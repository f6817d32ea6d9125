"""Processes die at random moments under load; what comes back is the source, byte for byte."""

from __future__ import annotations

import bisect
import contextlib
import random
import signal
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra.demo.processes import program
from tests.content import difference
from tests.integration.nbd import NbdClient
from tests.integration.place import MIB, Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_LOAD_SECONDS = 12
_RATE = 600


def fio_load(uri: str, folder: Path, seconds: int) -> subprocess.Popen[str]:
    """Random writes for so long, then all of them read back and checked, over our NBD export."""
    job = [
        *(program("fio"), "--name=load", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite"),
        *("--bs=4k", f"--size={seconds * _RATE * 4}k", f"--rate_iops={_RATE}", "--iodepth=8"),
        *("--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7"),
        *("--minimal", f"--aux-path={folder}"),
    ]
    return subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def overlapping_writes(uri: str, rng: random.Random, ended: threading.Event) -> int:
    """Writes of 512 B to 64 KiB over one another in the disk's last 8 MiB; how many."""
    count = 0
    with NbdClient(uri) as client:
        while not ended.wait(0.005):
            length = rng.choice([1, 1, 3, 8, 9, 128]) * 512
            at = client.size - rng.randrange(length, 8 * MIB, 512)
            client.write(at, rng.randbytes(length))
            count += 1
    return count


@pytest.mark.invariant("I1", "I2", "I3", "I14")
def test_ingest_and_agent_killed_at_random_moments_lose_nothing(place: Place) -> None:
    rng = random.Random(7)
    uri = place.protect()
    fio = fio_load(uri, place.folder, _LOAD_SECONDS)
    kills, ended = 0, threading.Event()
    pool = ThreadPoolExecutor(1)
    second = pool.submit(overlapping_writes, uri, random.Random(8), ended)
    try:
        while fio.poll() is None and kills < 6:
            time.sleep(rng.uniform(0.2, 2.0))
            if rng.random() < 0.5:
                place.kill(place.site.ingest)
                time.sleep(rng.uniform(0, 0.5))
                place.site.start_ingest()
            else:
                place.kill(place.site.agent)
                time.sleep(rng.uniform(0, 0.5))
                place.site.start_agent()
            kills += 1
        said, _ = fio.communicate(timeout=90)
    finally:
        ended.set()
        fio.kill()
        fio.wait()
        pool.shutdown()
    assert fio.returncode == 0, said
    assert second.result() > 300
    assert kills >= 4
    place.drain()
    source = place.lose()
    assert difference(place.export("latest-write"), source) == ""
    _control_a_lost_segment_shows(place, source)


def _control_a_lost_segment_shows(place: Place, source: bytes) -> None:
    """Without its newest segment the journal gives another disk: the comparison is not blind."""
    chain = sorted((place.bucket / "acme/demo/host1/chain").iterdir())
    with_data = [one for one in chain if one.stat().st_size > 100_000]
    for one in chain[chain.index(with_data[-1]) :]:
        one.unlink()
    assert difference(place.export("latest-write"), source) != ""


@pytest.mark.invariant("I2", "I3")
def test_a_killed_tap_comes_back_and_the_journal_follows(place: Place) -> None:
    rng = random.Random(11)
    uri = place.protect()
    with NbdClient(uri) as client:
        for _ in range(200):
            client.write(rng.randrange(0, 60 * MIB, 4096), rng.randbytes(4096))
        place.kill(place.site.tap)
        with pytest.raises((EOFError, OSError)):
            client.read(0, 512)
    place.site.start_tap()
    again = place.site.attach()
    place.site.wait_protected(lambda _now: None)
    with NbdClient(again) as client:
        for _ in range(200):
            client.write(rng.randrange(0, 60 * MIB, 4096), rng.randbytes(4096))
        client.flush()
    place.drain()
    source = place.lose()
    assert difference(place.export("latest-write"), source) == ""


@dataclass
class Claims:
    """What was written when, and what the status claimed meanwhile."""

    acknowledged_at: list[float] = field(default_factory=list)
    stored: int = 0
    safe_until: float = 0.0

    def observe(self, status: dict[str, Any], asked_at: float, base: int) -> None:
        """Keep the boldest claims: so much is stored, all before that instant is safe."""
        self.stored = max(self.stored, int(status["stored"]) - base)
        if status["rpo_seconds"] is not None:
            self.safe_until = max(self.safe_until, asked_at - float(status["rpo_seconds"]))

    @property
    def safe(self) -> int:
        """How many writes were acknowledged before the instant that was called safe."""
        return bisect.bisect_left(self.acknowledged_at, self.safe_until)


@pytest.mark.invariant("I2", "I4", "I11")
def test_everything_killed_at_once_leaves_a_prefix_as_new_as_the_rpo_said(place: Place) -> None:
    """The site dies in mid-write: what is stored is what was written up to one moment."""
    uri = place.protect()
    base, claims = place.head(), Claims()
    with NbdClient(uri) as client, ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(_watch, place, base, claims, 6.0)
        while not watching.done():
            written = len(claims.acknowledged_at) + 1
            client.write((written % 1000) * 4096, written.to_bytes(8, "little") * 512)
            claims.acknowledged_at.append(time.monotonic())
            time.sleep(0.0005)
        watching.result()
        for process in (place.site.ingest, place.site.agent, place.site.tap):
            place.kill(process)
    place.site.delete()
    image = place.export("latest-write")
    cut = _cut_of(image)
    assert cut is not None
    assert 0 < claims.stored <= cut <= len(claims.acknowledged_at)
    assert 0 < claims.safe <= cut
    # The controls: a claim that everything was safe would have been found out, and the same
    # image with two turns exchanged is no prefix of anything.
    assert cut < len(claims.acknowledged_at)
    first, second = image[4096:8192], image[8192:12288]
    assert _cut_of(image[:4096] + second + first + image[12288:]) is None


def _watch(place: Place, base: int, claims: Claims, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        claims.observe(place.site.status(), now, base)


def _cut_of(image: bytes) -> int | None:
    """How many of the numbered writes the image holds; None if it is no prefix of them."""
    turns = [int.from_bytes(image[n * 4096 : n * 4096 + 8], "little") for n in range(1000)]
    cut = max(turns)
    for slot, turn in enumerate(turns):
        newest = cut - (cut - slot) % 1000
        expected = newest if newest > 0 else 0
        block = image[slot * 4096 : (slot + 1) * 4096]
        if turn != expected or block != turn.to_bytes(8, "little") * 512:
            return None
    return cut


@pytest.mark.invariant("I1", "I6", "I14")
def test_a1_a_stopped_agent_does_not_touch_the_guest(place: Place) -> None:
    """Block load with fsync while the agent stands still for half a minute."""
    uri = place.protect()
    with NbdClient(uri) as client:
        before = _paced_writes(client, seconds=3)
        agent = place.site.agent
        assert agent is not None
        agent.popen.send_signal(signal.SIGSTOP)
        try:
            during = _paced_writes(client, seconds=30)
        finally:
            agent.popen.send_signal(signal.SIGCONT)
    assert _is_separate(before, during), (statistics.median(during), max(during))
    place.drain()
    source = place.lose()
    assert difference(place.export("latest-write"), source) == ""


@pytest.mark.invariant("I6")
def test_a1_control_a_tap_that_awaits_the_agent_is_noticed(place: Place) -> None:
    uri = place.protect()
    with NbdClient(uri) as client:
        before = _paced_writes(client, seconds=2)
        agent = place.site.agent
        assert agent is not None
        agent.popen.send_signal(signal.SIGSTOP)
        try:
            during = _awaiting_writes(client, place, seconds=4)
        finally:
            agent.popen.send_signal(signal.SIGCONT)
    assert not _is_separate(before, during)


def _paced_writes(client: NbdClient, seconds: float) -> list[float]:
    """200 writes a second, each eighth flushed; the latency of each in seconds."""
    latencies: list[float] = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        client.write((len(latencies) % 4000) * 4096, b"%08d" % len(latencies) * 512)
        if len(latencies) % 8 == 0:
            client.flush()
        latencies.append(time.monotonic() - began)
        time.sleep(0.005)
    return latencies


def _awaiting_writes(client: NbdClient, place: Place, seconds: float) -> list[float]:
    """The same, but each write waits for the agent's word, as a synchronous copy would."""
    latencies: list[float] = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        client.write(0, b"awaiting" * 512)
        command = [*map(str, place.site.agent_command("status", "--json"))]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        latencies.append(time.monotonic() - began)
    return latencies


def _is_separate(before: list[float], during: list[float]) -> bool:
    """Path separation: medians alike, and no request that waited for the agent.

    The bounds are wide because other tests share the processors; waiting for a stopped agent
    would take as long as it stands still.
    """
    if not during:
        return False
    middle_before, middle_during = statistics.median(before), statistics.median(during)
    return middle_during <= max(3 * middle_before, 0.005) and max(during) < 2.0


def test_fio_verification_is_not_blind(place: Place) -> None:
    """The control of the load itself: a scrambled block makes fio fail."""
    uri = place.protect()
    fio = fio_load(uri, place.folder, 3)
    time.sleep(2.5)
    with NbdClient(uri) as client:
        for at in range(0, 3 * _RATE * 4096, 65536):
            client.write(at, b"scramble" * 4096)
    try:
        fio.communicate(timeout=30)
    finally:
        fio.kill()
        fio.wait()
    assert fio.returncode != 0
