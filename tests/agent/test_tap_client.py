"""The control socket's client against a peer that answers late, out of order, wrongly or not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from host_agent.control import tap_client
from host_agent.control.errors import TapNotRunning
from host_agent.control.tap_client import TapChannel, TapStream
from host_agent.stream.errors import TapGone
from host_agent.wire.errors import WireError
from host_agent.wire.record import State
from host_agent.wire.tapctl import TapRefused
from tests.stream.harness import in_loop

GENERATION = "ab" * 16


class Peer:
    """One accepted connection of a socket of one's own."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.sock = socket.socket()

    async def accept(self) -> None:
        self.sock.close()
        self.sock, _ = await asyncio.get_running_loop().sock_accept(self.listener)

    async def hear(self) -> dict[str, Any]:
        data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 17)
        return dict(json.loads(data))

    def say(self, message: object, *descriptors: int) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.sock, [data], list(descriptors))

    def answer(self, request: dict[str, Any], **fields: object) -> None:
        self.say({"id": request["id"], "ok": True, **fields})

    def close(self) -> None:
        self.sock.close()
        self.listener.close()


Test = Callable[[Peer, TapChannel], Coroutine[Any, Any, None]]


def with_peer(test: Test) -> Callable[[Path], None]:
    """Give the test a connected pair."""

    @in_loop
    async def run(tmp_path: Path) -> None:
        peer = Peer(tmp_path / "tap.sock")
        channel = await tap_client.connect(tmp_path / "tap.sock")
        await peer.accept()
        try:
            await test(peer, channel)
        finally:
            await channel.close()
            peer.close()

    def wrapper(tmp_path: Path) -> None:
        run(tmp_path)

    wrapper.__doc__ = test.__doc__
    return wrapper


@with_peer
async def test_answers_may_come_out_of_order(peer: Peer, channel: TapChannel) -> None:
    first = asyncio.create_task(channel.call("wait", after=1, ms=1000))
    second = asyncio.create_task(channel.call("state"))
    one, two = await peer.hear(), await peer.hear()
    peer.say({"event": "something of tomorrow"})
    peer.say({"id": 999, "ok": True})
    peer.answer(two, which="state")
    peer.answer(one, which="wait")
    assert (await second)["which"] == "state"
    assert (await first)["which"] == "wait"


@with_peer
async def test_a_refusal_carries_the_taps_own_code(peer: Peer, channel: TapChannel) -> None:
    asked = asyncio.create_task(channel.call("mark", body={}))
    request = await peer.hear()
    peer.say(
        {
            "id": request["id"],
            "ok": False,
            "error": "not_recording",
            "message": "syncing",
            "hint": "wait",
            "retry": True,
        }
    )
    with pytest.raises(TapRefused) as caught:
        await asked
    assert (caught.value.code, caught.value.hint, caught.value.retryable) == (
        "not_recording",
        "wait",
        True,
    )


@with_peer
async def test_open_takes_the_descriptor_and_types_everything(
    peer: Peer, channel: TapChannel
) -> None:
    asked = asyncio.create_task(TapStream(channel).open())
    request = await peer.hear()
    sent = os.memfd_create("ring")
    answer: dict[str, object] = {
        "id": request["id"],
        "ok": True,
        "generation": GENERATION,
        "predecessor": None,
        "head": 9,
        "freed": 3,
        "payload_head": 4096,
        "payload_freed": 0,
        "anchor": 0,
        "anchor_hash": "00" * 32,
        "state": "syncing",
        "cause": "first_start",
        "disks": [],
    }
    peer.say(answer, sent)
    opened = await asked
    assert os.fstat(opened.descriptor).st_ino == os.fstat(sent).st_ino
    assert not os.get_inheritable(opened.descriptor)
    assert (opened.head, opened.freed, opened.state) == (9, 3, State.SYNCING)
    os.close(opened.descriptor)
    os.close(sent)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@with_peer
async def test_descriptors_that_nobody_asked_for_are_closed(
    peer: Peer, channel: TapChannel
) -> None:
    sent = os.memfd_create("ring")
    before = descriptors()
    for _ in range(10):
        asked = asyncio.create_task(channel.call("state"))
        peer.say({"id": (await peer.hear())["id"], "ok": True}, sent)
        await asked
    peer.say({"event": "x"}, sent)
    peer.say(b"no json", sent)
    await asyncio.sleep(0.05)
    assert descriptors() <= before
    os.close(sent)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"generation": GENERATION, "head": "x", "state": "dirty", "time": 1},
        {"generation": "ab", "head": 1, "state": "dirty", "time": 1},
        {"generation": GENERATION, "head": 1, "state": "asleep", "time": 1},
        {"generation": GENERATION, "head": 1, "state": 3, "time": 1},
    ],
)
def test_an_answer_that_lacks_something_is_a_named_error(
    tmp_path: Path, answer: dict[str, object]
) -> None:
    async def test(peer: Peer, channel: TapChannel) -> None:
        asked = asyncio.create_task(TapStream(channel).state())
        peer.answer(await peer.hear(), **answer)
        with pytest.raises(WireError):
            await asked

    with_peer(test)(tmp_path)


@pytest.mark.parametrize("garbage", [b"not json", b"[1]", b"\xff"])
def test_garbage_ends_the_connection_and_all_that_wait(tmp_path: Path, garbage: bytes) -> None:
    async def test(peer: Peer, channel: TapChannel) -> None:
        asked = [asyncio.create_task(channel.call("state")) for _ in range(3)]
        await peer.hear()
        peer.say(garbage)
        for one in asked:
            with pytest.raises(TapGone):
                await one
        assert not channel.was_ended_by_tap
        with pytest.raises(TapGone):
            await channel.call("state")

    with_peer(test)(tmp_path)


@with_peer
async def test_a_tap_that_goes_away_is_told_apart_from_our_own_close(
    peer: Peer, channel: TapChannel
) -> None:
    asked = asyncio.create_task(channel.call("state"))
    await peer.hear()
    peer.sock.close()
    with pytest.raises(TapGone):
        await asked
    assert channel.was_ended_by_tap


@with_peer
async def test_a_silent_tap_is_given_up(peer: Peer, channel: TapChannel) -> None:
    with pytest.raises(TapGone, match="did not answer"):
        await channel.call("state", seconds=0.05)


@in_loop
async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(TapNotRunning) as caught:
        await tap_client.connect(tmp_path / "tap.sock")
    assert "holdfast-tap" in caught.value.hint
