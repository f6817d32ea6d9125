"""The write hold: a marker, then no completion of what follows it until release or timer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from host_agent.wire.tapctl import TapRefused
from tests.model.model import MARK, WRITE
from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream
from tests.tap.daemon import Attached, Tap
from tests.tap.follow import Follower

SIZE = 1 << 20
ID = "c0ffee" + "0" * 26
BODY = {"checkpoint": ID, "kind": "crash", "tag": None, "scope": "group"}


@pytest.fixture(params=["memory", "storage"])
def attached(request: pytest.FixtureRequest, tap: Tap, make_disk: MakeDisk) -> Attached:
    folder: Path = request.getfixturevalue(request.param)
    return tap.attach(make_disk(SIZE, folder=folder), hold_ms_max=2000)


def hold(follower: Follower, timeout_ms: int = 2000) -> int:
    """Hold; the marker's sequence."""
    answer = follower.stream.call("hold", checkpoint=ID, timeout_ms=timeout_ms, body=BODY)
    return int(answer["seq"])


@pytest.mark.invariant("I5")
def test_completions_wait_for_release(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    client, other = (nbd.Nbd(attached.nbd_socket, "d") for _ in range(2))
    client.write(0, b"before" + bytes(506))
    marker = hold(follower)
    client.submit(nbd.WRITE, 512, data=b"a" * 512)
    client.submit(nbd.FLUSH)
    other.submit(nbd.TRIM, 4096, 512)
    other.submit(nbd.ZERO, 8192, 512)
    assert not client.has_answer(0.15)
    assert not other.has_answer(0.01)
    answer = follower.stream.call("release", checkpoint=ID)
    assert answer["by_timer"] is False
    assert 150_000 < answer["held_us"] < 2_000_000
    for one in (client, other):
        assert {one.receive().error for _ in range(2)} == {0}
    taken = follower.take()
    place = next(one for one in taken if one.seq == marker)
    assert place.op == MARK
    assert place.event.body == BODY
    after = [one for one in taken if one.seq > marker]
    assert sorted(one.op for one in after) == [WRITE, 2, 3, 4]
    assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I5")
def test_control_without_a_hold_completions_come_at_once(
    attached: Attached, follow: OpenStream
) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    follower.stream.call("mark", body=BODY)
    client.submit(nbd.WRITE, 512, data=b"a" * 512)
    assert client.has_answer(0.15)


@pytest.mark.invariant("I5", "I6")
def test_disk_work_and_other_reads_go_on(attached: Attached, follow: OpenStream) -> None:
    """Nothing drains: what is written during the hold is on the disk and in the ring already."""
    follower = follow(attached.stream_socket)
    writer, reader = (nbd.Nbd(attached.nbd_socket, "d") for _ in range(2))
    marker = hold(follower)
    writer.submit(nbd.WRITE, 0, data=b"h" * 4096)
    wait_until(lambda: follower.stream.state()["head"] > marker)
    assert reader.read(64 << 10, 4096) == bytes(4096)
    assert attached.path.read_bytes()[:4096] == b"h" * 4096
    assert not writer.has_answer(0.05)
    follower.stream.call("release", checkpoint=ID)
    assert writer.receive().error == 0


def wait_until(condition: Callable[[], bool]) -> None:
    """Within two seconds."""
    end = time.monotonic() + 2
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.invariant("I5")
def test_a_read_does_not_see_what_was_not_let_go(attached: Attached, follow: OpenStream) -> None:
    """Else a guest could act on a write that the cut does not hold."""
    follower = follow(attached.stream_socket)
    writer, reader = (nbd.Nbd(attached.nbd_socket, "d") for _ in range(2))
    marker = hold(follower)
    writer.submit(nbd.WRITE, 4096, data=b"h" * 4096)
    wait_until(lambda: follower.stream.state()["head"] > marker)
    reader.submit(nbd.READ, 0, 8192)
    assert not reader.has_answer(0.15)
    follower.stream.call("release", checkpoint=ID)
    assert reader.receive().data == bytes(4096) + b"h" * 4096
    assert writer.receive().error == 0


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("limit", [50, 200])
def test_the_taps_own_timer_ends_a_hold(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream, limit: int
) -> None:
    """Even if whoever asked is gone."""
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    waited, held = [], []
    for _ in range(3):  # the shortest is the tap's own; a busy machine adds to the others
        hold(follower, timeout_ms=limit)
        begin = time.monotonic()
        client.submit(nbd.WRITE, 0, data=b"t" * 512)
        follower.stream.close()
        assert client.receive().error == 0
        waited.append(time.monotonic() - begin)
        follower.reopen(type(follower.stream)(attached.stream_socket))
        answer = follower.stream.call("release", checkpoint=ID)
        assert answer["by_timer"] is True
        held.append(answer["held_us"])
    assert limit / 1000 * 0.5 < min(waited) < limit / 1000 + 0.05
    assert limit * 1000 <= min(held) < limit * 1000 + 20_000


@pytest.mark.invariant("I6")
def test_no_hold_is_longer_than_the_groups_setting(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """200 ms unless the group says more, whatever the request asks for."""
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    waited = []
    for _ in range(3):  # the shortest is the tap's own; a busy machine adds to the others
        try:
            hold(follower, timeout_ms=60_000)
        except TapRefused:
            return  # to refuse such a wish is as good
        begin = time.monotonic()
        client.submit(nbd.WRITE, 0, data=b"t" * 512)
        assert client.receive().error == 0
        waited.append(time.monotonic() - begin)
    assert min(waited) < 0.25


def test_a_release_without_a_hold(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    with pytest.raises(TapRefused) as caught:
        follower.stream.call("release", checkpoint=ID)
    assert caught.value.code == "no_such_hold"
    hold(follower)
    with pytest.raises(TapRefused) as caught:
        follower.stream.call("release", checkpoint="f" * 32)
    assert caught.value.code == "no_such_hold"
    follower.stream.call("release", checkpoint=ID)


def test_one_hold_at_a_time(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    hold(follower)
    with pytest.raises(TapRefused):
        follower.stream.call(
            "hold", checkpoint="f" * 32, timeout_ms=100, body={**BODY, "checkpoint": "f" * 32}
        )
    follower.stream.call("release", checkpoint=ID)
    taken = follower.take()
    assert sum(one.op == MARK for one in taken) == 1


@pytest.mark.invariant("I3")
def test_a_stream_that_does_not_record_refuses(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket, synced=False)
    for attempt in (
        lambda: hold(follower),
        lambda: follower.stream.call("mark", body=BODY),
    ):
        with pytest.raises(TapRefused) as caught:
            attempt()
        assert caught.value.code == "not_recording"
    client = nbd.Nbd(attached.nbd_socket, "d")
    client.submit(nbd.WRITE, 0, data=b"n" * 512)
    assert client.has_answer(1)


def test_a_body_too_large_is_refused(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    with pytest.raises(TapRefused):
        follower.stream.call("mark", body={**BODY, "tag": "x" * (49 << 10)})
    assert follower.stream.call("mark", body={**BODY, "tag": "x" * (40 << 10)})["seq"]
    follower.take()


def test_records_of_the_agent(attached: Attached, follow: OpenStream) -> None:
    """CONFIG, COMMIT and HANDOVER take their places like everything else."""
    follower = follow(attached.stream_socket)
    last = follower.seq
    for op, number in (("config", 22), ("commit", 19), ("handover", 23)):
        answer = follower.stream.call("record", op=op, body={"about": op})
        last += 1
        assert answer["seq"] == last
        (one,) = follower.take()
        assert (one.op, one.event.body, one.event.disk) == (number, {"about": op}, 0xFFFF)
    with pytest.raises(TapRefused):
        follower.stream.call("record", op="write", body={})


@pytest.mark.invariant("I1")
def test_a_client_that_leaves_during_a_hold(attached: Attached, follow: OpenStream) -> None:
    follower = follow(attached.stream_socket)
    client = nbd.Nbd(attached.nbd_socket, "d")
    hold(follower)
    client.submit(nbd.WRITE, 0, data=b"g" * 512)
    time.sleep(0.05)
    client.close()
    again = nbd.Nbd(attached.nbd_socket, "d")
    follower.stream.call("release", checkpoint=ID)
    assert again.read(0, 512) == b"g" * 512
    follower.take()
    assert follower.image() == attached.path.read_bytes()


@pytest.mark.invariant("I5")
def test_a_cut_over_two_groups_keeps_what_came_before(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """A ledger in one group, then in the other: no cut has the effect without its cause."""
    parts = [tap.attach(make_disk(SIZE, f"{name}.img"), group=name) for name in "ab"]
    followers = [follow(part.stream_socket) for part in parts]
    stop = threading.Event()
    turns = [0]

    def ledger() -> None:
        clients = [nbd.Nbd(part.nbd_socket, "d") for part in parts]
        while not stop.is_set():
            turns[0] += 1
            for client in clients:
                client.write(0, turns[0].to_bytes(8, "little") * 64)
            time.sleep(0.0005)  # the followers check each record, and are slower than the tap

    thread = threading.Thread(target=ledger)
    thread.start()
    cuts: list[list[int]] = []
    try:
        for number in range(500):
            if len(cuts) > 15 and turns[0] > 100:
                break
            identifier = f"{number:032x}"
            body = {**BODY, "checkpoint": identifier}
            seqs = [
                f.stream.call("hold", checkpoint=identifier, timeout_ms=200, body=body)["seq"]
                for f in followers
            ]
            ends = [f.stream.call("release", checkpoint=identifier) for f in followers]
            if not any(end["by_timer"] for end in ends):
                cuts.append(seqs)
            for f in followers:
                f.take()
    finally:
        stop.set()
        thread.join()
    assert len(cuts) > 15
    assert turns[0] > 50
    for cut in cuts:
        first, second = (_ledger_at(f, seq) for f, seq in zip(followers, cut, strict=True))
        assert first - 1 <= second <= first


def _ledger_at(follower: Follower, seq: int) -> int:
    written = [one for one in follower.taken if one.op == WRITE and one.seq <= seq]
    return int.from_bytes(written[-1].event.data[:8], "little") if written else 0


@pytest.mark.invariant("I5")
def test_control_markers_without_a_hold_cut_between_cause_and_effect(
    tap: Tap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """Two plain marks, with an entry of the ledger between them: the effect without its cause."""
    parts = [tap.attach(make_disk(SIZE, f"{name}.img"), group=name) for name in "ab"]
    followers = [follow(part.stream_socket) for part in parts]
    clients = [nbd.Nbd(part.nbd_socket, "d") for part in parts]
    first = followers[0].stream.call("mark", body=BODY)["seq"]
    for turn in (1, 2):
        for client in clients:
            client.write(0, turn.to_bytes(8, "little") * 64)
    second = followers[1].stream.call("mark", body=BODY)["seq"]
    for f in followers:
        f.take()
    assert _ledger_at(followers[0], first) < _ledger_at(followers[1], second) - 1
