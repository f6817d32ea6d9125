"""What an agent may have back: its own stream's objects, sealed, a bounded piece at a time."""

from __future__ import annotations

import msgspec
import pytest

from host_agent.wire import limits
from host_agent.wire.message import Fetch, Fetched, FetchStatus, pack, pack_head
from host_agent.wire.names import chain_name, hashes_name, key_name
from host_agent.wire.segment import parse_tail
from tests.ingest.conftest import Connect, MakeSource
from tests.servers.agent import Agent, Source
from tests.servers.ingest_process import IngestProcess
from workers.storage.port import ObjectStore


def fetch(agent: Agent, what: str, **fields: object) -> Fetched:
    wanted = msgspec.structs.replace(Fetch(1, "key"), what=what, **fields)
    agent.send(pack(wanted))
    while True:
        message = agent.read_message()
        if isinstance(message, Fetched):
            return message


def stream(agent: Agent, source: Source, segments: int) -> None:
    agent.hello()
    for _ in range(segments):
        source.write(3)
        agent.send_frame()
        agent.wait_stored()


@pytest.fixture
def agent(ingest: IngestProcess, connect: Connect, source: Source) -> Agent:
    """A second session of a stream with an epoch and four data segments."""
    first = connect(ingest, source)
    stream(first, source, 4)
    first.leave()
    made = connect(ingest, source)
    made.hello()
    return made


@pytest.mark.invariant("I15")
def test_a_stream_gets_its_own_objects_back(
    agent: Agent, source: Source, store: ObjectStore
) -> None:
    assert agent.welcome is not None
    last = agent.welcome.place
    key = fetch(agent, "key", generation=source.generation.hex())
    assert key.data == store.get(key_name(source.identity, source.generation))
    whole = store.get(chain_name(source.identity, 3))
    part = fetch(agent, "segment", place=3, offset=16, length=100)
    assert (part.total, part.data) == (len(whole), whole[16:116])
    data = b""
    place = offset = 0
    infos = []
    while place < last:
        found = fetch(agent, "tails", place=place + 1, offset=offset, length=700)
        assert 0 < len(found.data) <= 700
        data, offset = data + found.data, offset + len(found.data)
        while len(data) >= 4 and len(data) >= 4 + (length := int.from_bytes(data[:4], "little")):
            infos.append(parse_tail(data[4 : 4 + length])[0])
            data, place = data[4 + length :], place + 1
            offset = len(data)
    assert [info.place for info in infos] == list(range(1, last + 1))
    # Beyond the session's own claim is nothing.
    assert fetch(agent, "tails", place=last + 1).data == b""
    assert fetch(agent, "segment", place=last + 1).status is FetchStatus.MISSING
    source.write()
    agent.send_frame()
    agent.wait_stored()


def test_the_newest_whole_list_is_meant(agent: Agent, source: Source, store: ObjectStore) -> None:
    assert fetch(agent, "hashes").status is FetchStatus.MISSING
    store.put_if_absent(hashes_name(source.identity, 2, 0), b"directory")
    store.put_if_absent(hashes_name(source.identity, 2, 1), b"part")
    # One without a directory is not whole: who made it was ended.
    store.put_if_absent(hashes_name(source.identity, 4, 1), b"part")
    found = fetch(agent, "hashes")
    assert (found.place, found.data) == (2, b"directory")
    assert fetch(agent, "hashes", place=2, part=1).data == b"part"
    assert fetch(agent, "hashes", place=2, part=2).status is FetchStatus.MISSING
    # A list of a place behind the session's claim is of somebody else's future.
    store.put_if_absent(hashes_name(source.identity, 99, 0), b"later")
    assert fetch(agent, "hashes").place == 2
    assert fetch(agent, "hashes", place=99).status is FetchStatus.MISSING


@pytest.mark.invariant("I15")
def test_no_other_stream_is_within_reach(
    ingest: IngestProcess, connect: Connect, agent: Agent, make_source: MakeSource
) -> None:
    """I15: names are made by ingest from the session's identity; nothing of them is the agent's."""
    other = make_source(group="other", seed=9)
    stream(connect(ingest, other), other, 2)
    found = fetch(agent, "key", generation=other.generation.hex())
    assert (found.status, found.data) == (FetchStatus.MISSING, b"")
    # A name that is none is refused, and the session goes on.
    assert fetch(agent, "key").status is FetchStatus.FAILED


@pytest.mark.parametrize(
    "bad",
    [
        {"what": "object"},
        {"what": "segment", "length": limits.FETCH_BYTES_MAX + 1},
        {"what": "segment", "place": -1},
        {"what": "key", "generation": "../../../../other/keys"},
    ],
)
def test_what_is_no_fetch_ends_the_session(agent: Agent, bad: dict[str, object]) -> None:
    wanted = {"request": 1, "what": "segment", "place": 1, "part": 0, "generation": None,
              "offset": 0, "length": 5, **bad}  # fmt: skip
    body = msgspec.json.encode(wanted)
    agent.send(pack_head(128, len(body)) + body)
    close = agent.wait_close()
    assert close is not None
    assert close.code == "protocol"


def test_one_at_a_time(agent: Agent) -> None:
    agent.send(pack(Fetch(1, "segment", place=1)) + pack(Fetch(2, "segment", place=1)))
    close = agent.wait_close()
    assert close is not None
    assert close.code == "protocol"
