"""Stores that are slow, full, away, or a real S3 service: STORED waits for the truth."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_agent.wire.message import pack_frame_head
from tests.ingest.conftest import Connect, MakeSource
from tests.ingest.reading import read_chain
from tests.servers.agent import Agent, Closed, Source
from tests.servers.faulty_s3 import Fault, FaultyS3, running_faulty_s3
from tests.servers.ingest_process import IngestProcess, IngestSetup, Pki, running_ingest
from tests.servers.seaweed import CREDENTIALS, Seaweed, running_seaweed
from workers.storage.port import ObjectStore
from workers.storage.s3 import S3Credentials
from workers.storage.url import open_store

MIB = 1024 * 1024


@pytest.fixture
def faulty() -> Iterator[FaultyS3]:
    with running_faulty_s3() as service:
        yield service


def _credentials(directory: Path, credentials: S3Credentials) -> Path:
    path = directory / "store.json"
    path.write_text(
        json.dumps(
            {
                "access_key_id": credentials.access_key_id,
                "secret_access_key": credentials.secret_access_key,
            }
        )
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def s3_setup(tmp_path: Path, pki: Pki, faulty: FaultyS3) -> IngestSetup:
    credentials = _credentials(tmp_path, S3Credentials("any", "body"))
    return IngestSetup(tmp_path, pki, faulty.url(), credentials=credentials)


@pytest.fixture
def s3_store(faulty: FaultyS3) -> ObjectStore:
    return open_store(faulty.url(), credentials=S3Credentials("any", "body"))


def _begin(ingest: IngestProcess, connect: Connect, source: Source) -> Agent:
    agent = connect(ingest, source)
    agent.hello()
    agent.send_frame()
    agent.wait_stored()
    return agent


@pytest.mark.invariant("I2")
@pytest.mark.parametrize(
    ("fault", "retry"), [(Fault.FULL_507, True), (Fault.DENIED_403, False)], ids=["full", "refused"]
)
def test_store_that_takes_nothing_is_never_acknowledged(
    s3_setup: IngestSetup,
    s3_store: ObjectStore,
    faulty: FaultyS3,
    connect: Connect,
    source: Source,
    fault: Fault,
    retry: bool,
) -> None:
    """I2: no STORED; CLOSE names the store; it goes on by itself when the store does."""
    with running_ingest(s3_setup) as ingest:
        agent = _begin(ingest, connect, source)
        before = agent.stored
        faulty.always = fault
        source.write(5)
        agent.send_frame()
        close = agent.wait_close()
        assert close is not None
        assert close.code == "store_error"
        assert "s3://bucket/" in close.message
        assert close.hint
        assert (close.retry_seconds is not None) == retry
        assert agent.stored == before
        with pytest.raises(Closed) as closed:
            connect(ingest, source).hello()
        assert closed.value.code == "store_error"
        faulty.always = None
        again = connect(ingest, source)
        assert again.hello().stored == before
        again.send_frame()
        again.wait_stored()
        stream = ingest.stream()
        assert stream["bytes_dropped"] > 0
        assert stream["bytes_held"] == 0
    assert read_chain(s3_store, source).seqs[-1] == source.head


@pytest.mark.invariant("I2", "I7")
@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.ERROR_500, Fault.LOST_REQUEST])
def test_commit_whose_answer_was_lost_happens_once(
    s3_setup: IngestSetup,
    s3_store: ObjectStore,
    faulty: FaultyS3,
    connect: Connect,
    source: Source,
    fault: Fault,
) -> None:
    """I2, I7: an unknown outcome is resolved by the same bytes and by reading back."""
    with running_ingest(s3_setup) as ingest:
        agent = _begin(ingest, connect, source)
        for number in range(6):
            if number % 2:
                faulty.faults.append(("PUT", fault))
            source.write(2)
            agent.send_frame()
            agent.wait_stored()
            assert read_chain(s3_store, source).seqs[-1] == agent.stored
        assert [message.place for message in agent.stored_messages] == list(range(2, 9))


def test_short_outage_is_waited_for(
    s3_setup: IngestSetup, faulty: FaultyS3, connect: Connect, source: Source
) -> None:
    s3_setup.settings = {"probe_seconds": 0.1}
    with running_ingest(s3_setup) as ingest:
        agent = _begin(ingest, connect, source)
        faulty.always = Fault.BUSY_503
        source.write(2)
        agent.send_frame()
        agent.read_for(0.8)
        assert agent.stored < source.head
        assert ingest.stream()["held_up_by"] == "store"
        faulty.always = None
        agent.wait_stored()


@pytest.mark.invariant("I2")
def test_slow_store_delays_stored_and_nothing_else(
    s3_setup: IngestSetup, faulty: FaultyS3, connect: Connect, source: Source
) -> None:
    """I2: STORED is the store's word; received is only received."""
    s3_setup.settings = {"probe_seconds": 0.1}
    with running_ingest(s3_setup) as ingest:
        agent = _begin(ingest, connect, source)
        agent.read_for(0.4)
        faulty.put_seconds = 1.5
        source.write(2)
        began = time.monotonic()
        agent.send_frame()
        agent.read_for(1.0)
        stream = ingest.stream()
        assert stream["received"] == source.head
        assert stream["stored"] == agent.stored < source.head
        assert stream["held_up_by"] == "store"
        assert stream["rpo_seconds"] > 0.8
        agent.wait_stored()
        assert time.monotonic() - began >= 1.5


@pytest.mark.slow
@pytest.mark.invariant("I12")
def test_memory_is_bounded_whatever_agents_send(
    s3_setup: IngestSetup, faulty: FaultyS3, connect: Connect, make_source: MakeSource
) -> None:
    """I12: the store hangs, agents ignore the window; the sockets are not read, memory stays."""
    s3_setup.settings = {"limits": {"memory_mib": 64}, "probe_seconds": 0.2}
    with running_ingest(s3_setup) as ingest:
        agents = [connect(ingest, make_source(f"group{n}", seed=n)) for n in range(4)]
        for agent in agents:
            agent.hello(commit_seconds=60.0)
            agent.answers_probes = False
        base = _resident(ingest)
        faulty.put_seconds = 3.0
        blob = os.urandom(MIB)
        for agent in agents:
            agent.source.write(70, MIB, blob)
            agent.socket.settimeout(0.5)
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            for agent in agents:
                _push(agent)
        status = ingest.status()
        # One frame more for a session that held nothing when its turn came.
        assert status["memory_held_bytes_max"] <= 64 * MIB + 4 * 3 * MIB
        assert status["memory_held_bytes_max"] > 48 * MIB, "the agents did not press"
        assert _resident(ingest) - base < 220 * MIB
        faulty.put_seconds = 0.0
        for agent in agents:
            agent.leave()
        for agent in agents:
            again = connect(ingest, agent.source)
            again.hello()
            again.send_frame(min(again.source.head, again.sent + 3))
            again.wait_stored()
        time.sleep(0.2)
        assert ingest.status()["memory_held_bytes"] == 0


def _push(agent: Agent) -> None:
    """Send as long as it is taken, in small steps; a half-sent frame is finished later."""
    pending: bytes = getattr(agent, "pending_send", b"")
    if not pending:
        last = min(agent.source.head, agent.sent + 3)
        if last == agent.sent:
            return
        frame = agent.source.seal(agent.sealer, agent.sent + 1, last)
        body = frame.header_bytes + frame.index + frame.payload
        pending, agent.sent = pack_frame_head(len(body)) + body, last
    try:
        while pending:
            sent = agent.socket.send(pending[:65536])
            pending = pending[sent:]
    except TimeoutError:
        pass
    agent.pending_send = pending  # type: ignore[attr-defined]


def _resident(ingest: IngestProcess) -> int:
    for line in Path(f"/proc/{ingest.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_store_without_create_if_absent_is_refused_at_start(tmp_path: Path, pki: Pki) -> None:
    with running_faulty_s3(ignores_condition=True) as loose:
        credentials = _credentials(tmp_path, S3Credentials("any", "body"))
        setup = IngestSetup(tmp_path, pki, loose.url("loose"), credentials=credentials)
        with pytest.raises(RuntimeError, match=r"store_unsuitable s3://loose/"):
            IngestProcess(setup)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.invariant("I2")
def test_full_then_read_only_folder(
    tmp_path: Path, pki: Pki, connect: Connect, source: Source
) -> None:
    """I2: a local folder without room, then without the right to write."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", mount], check=True)
    try:
        with running_ingest(IngestSetup(tmp_path, pki, f"file://{mount}/store")) as ingest:
            agent = _begin(ingest, connect, source)
            source.write(8, MIB)
            with pytest.raises(Closed) as closed:
                agent.send_frame(5)
                agent.send_frame()
                agent.wait_stored()
            assert closed.value.code == "store_error"
            assert "ENOSPC" in str(closed.value.close)
            stored = agent.stored
            agent = connect(ingest, source)
            assert agent.hello().stored == stored
            subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
            agent.send_frame(stored + 1)
            close = agent.wait_close()
            assert close is not None
            assert (close.code, close.retry_seconds) == ("store_error", None)
            assert "EROFS" in close.message
            subprocess.run(["mount", "-o", "remount,rw,size=40m", mount], check=True)
            agent = connect(ingest, source)
            assert agent.hello().stored == stored
            agent.send_frame(5)
            agent.send_frame()
            agent.wait_stored()
        assert read_chain(open_store(f"file://{mount}/store"), source).seqs[-1] == source.head
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.mark.s3
@pytest.mark.invariant("I2", "I7")
def test_life_of_a_stream_on_a_real_service(
    tmp_path: Path, pki: Pki, seaweed: Seaweed, connect: Connect, source: Source
) -> None:
    """I2, I7: begin, large segments, fencing by another process, resume, a new generation."""
    url = seaweed.make_bucket("journal")
    credentials = _credentials(tmp_path, CREDENTIALS)
    other = tmp_path / "other"
    other.mkdir()
    settings = {"commit_seconds_min": 0.2, "asof_seconds": 0.3, "probe_seconds": 0.1}
    setups = [
        IngestSetup(directory, pki, url, settings, credentials=credentials)
        for directory in (tmp_path, other)
    ]
    store = open_store(url, credentials=CREDENTIALS)
    with running_ingest(setups[0]) as first, running_ingest(setups[1]) as second:
        older = _begin(first, connect, source)
        source.write(20, MIB)
        while older.sent < source.head:
            older.send_frame(min(source.head, older.sent + 3))
        older.wait_stored()
        older.read_for(0.5)
        newer = connect(second, source)
        assert newer.hello().stored == source.head
        source.write(2)
        older.send_frame()
        close = older.wait_close()
        assert close is not None
        assert close.code == "fenced"
        newer.send_frame()
        newer.wait_stored()
        newer.leave()
        following = source.next_generation()
        agent = connect(first, following)
        assert agent.hello().begin == "new_generation"
        agent.send_frame()
        agent.wait_stored()
    assert read_chain(store, source).seqs == list(range(1, source.head + 1))
    assert read_chain(store, source).epochs == [1, 2, 3]
    assert read_chain(store, following).seqs == [1]
    assert len(list(store.list("acme/asof/"))) >= 1
