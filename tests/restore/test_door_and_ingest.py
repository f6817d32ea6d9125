"""From one door of a data node to the other: what ingest was sent is what a host gets back."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest

from app.certificates.authority import sign_server
from host_agent.wire.names import INGEST, Identity, server_name
from host_agent.wire.record import Op
from host_agent.wire.serving import HostRight
from tests.restore.door import World, fetch, serving
from tests.servers.agent import Agent, Source, client_context
from workers.ingest import door as ingest
from workers.ingest.tls import ServerIdentity
from workers.supervisor.port import ServiceStart

SIZE = 1 << 20


def image_of(source: Source) -> bytes:
    """What the records say, one after the other."""
    image = bytearray(SIZE)
    for record, payload in zip(source.records, source.payloads, strict=True):
        if record["op"] == Op.WRITE:
            at = int(record["offset"])
            image[at : at + len(payload)] = payload
    return bytes(image)


def send(world: World, port: int, source: Source) -> None:
    """As a host's agent does it: until all of it is stored."""
    credentials = world.credentials("source-1")
    files = (credentials.certificate_file, credentials.key_file)
    context = client_context(credentials.ca_file, files)
    agent = Agent(("127.0.0.1", port), context, source)
    agent.hello()
    for last in np.linspace(10, source.head, 8, dtype=int).tolist():
        agent.send_frame(last)
    agent.commit_now(source.head)
    agent.wait_stored(seconds=60)
    agent.leave()


@pytest.mark.invariant("I3")
def test_what_ingest_stored_comes_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    identity = Identity(world.tenant, "vpg-1", "source-1")
    generation = random.Random(7).randbytes(16).hex()  # the source's first
    disks = [{"disk": 0, "name": "root", "size": SIZE}]
    begin = {"cause": "first_start", "generation": generation, "predecessor": None, "last_good": 0}
    source = Source(
        identity,
        world.builder.tenant_key,
        random.Random(7),
        begin=json.dumps({**begin, "disks": disks}).encode(),
    )
    source.mark()
    source.write(200)
    names = [server_name(world.tenant, INGEST), "localhost"]
    server = sign_server(world.root, names, world.now)
    record = msgspec.structs.replace(world.record, hosts=[HostRight("source-1", ["*"])])
    own = ServerIdentity(server.certificate_pem, server.key_pem.decode())

    async def run() -> None:
        service = await ingest.open_service(ServiceStart(record, own, world.start.log))
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        port = int(listener.getsockname()[1])
        sending = asyncio.create_task(asyncio.to_thread(send, world, port, source))
        connected, _ = await loop.sock_accept(listener)
        connected.setblocking(False)
        service.take(connected, "127.0.0.1:1")
        await sending
        await service.stop()
        listener.close()
        made = world.ticket(key=source.group_key)
        async with serving(world.start) as (address, _):
            await fetch(world, [address], tmp_path / "out", ticket=made)

    asyncio.run(run())
    assert (tmp_path / "out" / "root.raw").read_bytes() == image_of(source)
