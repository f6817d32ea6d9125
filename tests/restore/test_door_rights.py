"""Who may restore through a data node's door: by which ticket, from which host, until when."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import msgspec
import pytest

from app.certificates.authority import make_root
from host_agent.recovery.door import Doorway, connect
from host_agent.recovery.errors import (
    RecoveryError,
    RestoreRefused,
)
from host_agent.wire import restoring, ticket
from host_agent.wire.keys import GroupKey, TenantKey
from tests.restore.door import (
    DISK,
    OTHER_TENANT,
    World,
    fetch,
    serving,
)
from workers.restore import admission


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def address_of(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def refused(world: World, made: str, **options: object) -> RestoreRefused:
    """What the door answers to this ticket."""
    async with serving(world.start) as (address, service):
        with pytest.raises(RestoreRefused) as caught:
            await fetch(world, [address], world.folder / "out", ticket=made, **options)  # type: ignore[arg-type]
        assert service.status()["opened"] == 0
    return caught.value


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    "case",
    [
        "another tenant's authority",
        "another deployment",
        "another host's",
        "another stream's",
        "begun too late",
        "another tenant's name",
        "another door's",
        "another group's key",
    ],
)
def test_a_ticket_that_gives_no_right(world: World, tmp_path: Path, case: str) -> None:
    world.fill(2)
    foreign = World(tmp_path / "foreign", OTHER_TENANT, world.root)
    stranger = World(tmp_path / "stranger", world.tenant, make_root(world.now))
    other_group = GroupKey.make(TenantKey.make(world.tenant), "vpg-2")
    made = {
        "another tenant's authority": lambda: world.ticket(by=foreign.intermediate),
        "another deployment": lambda: world.ticket(by=stranger.intermediate),
        "another host's": lambda: world.ticket(host="target-2"),
        "another stream's": lambda: world.ticket(streams=["source-2"], host="target-2"),
        "begun too late": lambda: world.ticket(begin_by=int(time.time()) - 1),
        "another tenant's name": lambda: world.ticket(tenant=OTHER_TENANT),
        "another door's": lambda: world.ticket(servers=[world.new_server()]),
        "another group's key": lambda: world.ticket(key=other_group),
    }[case]()

    if case == "another tenant's name":
        # The client asks by the tenant's name: the door itself has to be asked directly.
        async def directly() -> None:
            async with serving(world.start) as (address, _):
                way = Doorway(address_of(address), world.tenant, world.credentials())
                async with await connect(way) as door:
                    with pytest.raises(RestoreRefused, match="another tenant"):
                        await door.open(made, "source-1", None)

        asyncio.run(directly())
        return
    error = asyncio.run(refused(world, made))
    assert error.code in {"bad_ticket", "unseal_failed"}
    assert error.retry_seconds is None


@pytest.mark.invariant("I9")
def test_an_altered_ticket_is_not_signed(world: World) -> None:
    made = world.ticket()
    body, _, signature = made.partition(".")
    told = ticket.read_unbelieved(made)
    for field, value in {
        "host": "target-2",
        "streams": ["source-1", "source-2"],
        "begin_by": told.begin_by + 1,
        "end_by": told.end_by + 1,
        "at": "latest",
        "vpg": "vpg-2",
        "id": "0" * 32,
    }.items():
        changed = msgspec.structs.replace(told, **{field: value})
        forged = ticket._text(msgspec.json.encode(changed)) + "." + signature
        with pytest.raises(ticket.BadTicket):
            ticket.check(forged, world.intermediate.key.public_key())
    assert ticket.check(f"{body}.{signature}", world.intermediate.key.public_key()) == told


def test_control_without_the_signature_an_altered_ticket_lets_in(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill(2)
    stranger = World(tmp_path / "stranger", world.tenant, make_root(world.now))
    monkeypatch.setattr(ticket, "is_signed_by", lambda *_: True)
    made = world.ticket(by=stranger.intermediate)

    async def run() -> None:
        async with serving(world.start) as (address, _):
            await fetch(world, [address], tmp_path / "out", ticket=made)

    asyncio.run(run())


@pytest.mark.invariant("I9")
def test_who_shows_the_ticket_matters(world: World, tmp_path: Path) -> None:
    """Another host of the tenant is told so; another tenant's is no further than the handshake."""
    world.fill(2)
    made = world.ticket()
    error = asyncio.run(refused(world, made, credentials=world.credentials("target-2")))
    assert error.code == "bad_ticket"
    foreign = World(tmp_path / "foreign", OTHER_TENANT, world.root)

    async def run() -> None:
        async with serving(world.start) as (address, service):
            way = Doorway(address_of(address), world.tenant, foreign.credentials("target-1"))
            with pytest.raises((OSError, EOFError)):
                async with await connect(way) as door:
                    await door.open(made, "source-1", None)
            assert service.status()["opened"] == 0

    asyncio.run(run())


def test_what_was_begun_may_end_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill(2)
    made = world.ticket(begin_by=int(time.time()) + 900, end_by=int(time.time()) + 5000)
    clock = [time.time()]

    async def run() -> None:
        async with serving(world.start) as (address, service):
            service._tools.wall = lambda: clock[0]
            way = Doorway(address_of(address), world.tenant, world.credentials())
            async with await connect(way) as door:
                begun = await door.open(made, "source-1", None)
            clock[0] += 1000
            async with await connect(way) as door:
                with pytest.raises(RestoreRefused, match="time is over"):
                    await door.open(made, "source-1", None)
            async with await connect(way) as door:
                await door.open(made, "source-1", begun.receipt)
            forged = msgspec.structs.replace(begun.receipt, seq=begun.receipt.seq - 1)
            for receipt in (forged, msgspec.structs.replace(begun.receipt, seal="0" * 64)):
                async with await connect(way) as door:
                    with pytest.raises(RestoreRefused, match="receipt"):
                        await door.open(made, "source-1", receipt)
            clock[0] += 5000
            async with await connect(way) as door:
                with pytest.raises(RestoreRefused, match="time is over"):
                    await door.open(made, "source-1", begun.receipt)

    asyncio.run(run())


def test_a_host_that_is_denied_is_put_out_and_stays_out(world: World) -> None:
    world.fill(2)
    made = world.ticket()

    async def run() -> None:
        async with serving(world.start) as (address, service):
            way = Doorway(address_of(address), world.tenant, world.credentials())
            async with await connect(way) as door:
                await door.open(made, "source-1", None)
                denied = msgspec.structs.replace(world.record, version=2, denied=["target-1"])
                service.change(denied)
                with pytest.raises((OSError, EOFError)):
                    async for _ in door.read("root", [(0, 512)] * 20):
                        pass
            with pytest.raises((OSError, EOFError)):
                async with await connect(way) as door:
                    await door.open(made, "source-1", None)

    asyncio.run(run())


def test_a_ticket_for_the_certificate_before_is_taken(world: World, tmp_path: Path) -> None:
    world.fill(2)
    made = world.ticket()
    start = world.start

    async def run() -> None:
        async with serving(start) as (address, service):
            world.server = world.new_server()
            service.renew(world.start.identity)
            await fetch(world, [address], tmp_path / "out", ticket=made)
            await fetch(world, [address], tmp_path / "out2")

    asyncio.run(run())


# --- bad input


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([restoring.List(1, "root", 0)], "bad_format"),
        ([restoring.Open(2, "x", "source-1")], "bad_format"),
        ([restoring.Open(1, "x", "source-1")], "bad_format"),
        (["ticket", restoring.Read(1, "nothing", 0, 512)], "no_such_disk"),
        (["ticket", restoring.Read(1, "root", DISK - 512, 1024)], "no_such_disk"),
        (["ticket", restoring.Opening()], "bad_format"),
        (["ticket", b"GET / HTTP/1.1\r\n\r\n"], "bad_format"),
        ([restoring.pack(restoring.Data(1, 0, b"x", 0))], "bad_format"),
    ],
)
def test_what_a_host_may_not_say(world: World, said: list[object], code: str) -> None:
    world.fill(2)

    async def run() -> None:
        async with serving(world.start) as (address, _):
            way = Doorway(address_of(address), world.tenant, world.credentials())
            async with await connect(way) as door:
                for message in said:
                    if message == "ticket":
                        await door.open(world.ticket(), "source-1", None)
                        continue
                    data = message if isinstance(message, bytes) else restoring.pack(message)  # type: ignore[arg-type]
                    door._writer.write(data)
                with pytest.raises(RestoreRefused) as caught:
                    await door._receive()
                assert caught.value.code == code
            async with await connect(way) as door:  # and nobody else is harmed
                await door.open(world.ticket(), "source-1", None)

    asyncio.run(run())


def test_only_so_many_restores_run_at_once(world: World) -> None:
    world.fill(2)

    async def run() -> None:
        async with serving(world.start) as (address, service):
            service._tools.restores = asyncio.Semaphore(1)
            way = Doorway(address_of(address), world.tenant, world.credentials())
            async with await connect(way) as one:
                await one.open(world.ticket(), "source-1", None)
                async with await connect(way) as two:
                    with pytest.raises(RestoreRefused) as caught:
                        await two.open(world.ticket(), "source-1", None)
                    assert caught.value.retry_seconds
                # The first still works.
                found = [data async for data in one.read("root", [(0, 4096)])]
                assert len(found[0].data) == 4096

    asyncio.run(run())


def test_a_server_that_is_not_the_tenants_is_not_believed(world: World, tmp_path: Path) -> None:
    foreign = World(tmp_path / "foreign", OTHER_TENANT, world.root)

    async def run() -> None:
        async with serving(foreign.start) as (address, _):
            way = Doorway(address_of(address), world.tenant, world.credentials())
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(way)
            with pytest.raises(RecoveryError):
                await fetch(world, [address], tmp_path / "out", patience=0.2)

    asyncio.run(run())


def test_admission_needs_the_version(world: World) -> None:
    believed = admission.Believed(world.tenant, world.intermediate.certificate, ())
    with pytest.raises(ticket.BadTicket, match="no key for this data node"):
        admission.admit(
            restoring.Open(1, world.ticket(), "source-1"), "target-1", believed, time.time()
        )
