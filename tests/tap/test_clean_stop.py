"""What says that a tap stopped in order. Two records say so, each durable where a kill leaves it,
and each alone is enough to deny it: a tap that wrongly believed it would go on in a ring whose last
writes it lost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.tap import nbd
from tests.tap.conftest import MakeDisk, OpenStream, StartTap
from tests.tap.daemon import Stream, Tap

SIZE = 1 << 20
_CLEAN_AT = 200  # of the ring's header, see FORMAT.md
_HOUR_NS = 3600 * 10**9

pytestmark = pytest.mark.invariant("I2", "I3")


def _is_clean(stream: Stream) -> bool:
    return bool(stream.map[_CLEAN_AT])


def _state_file(tap: Tap) -> Path:
    (found,) = tap.state_dir.glob("*.group")
    return found


def test_a_tap_never_claims_an_orderly_stop_while_it_runs(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    tap = start_tap()
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket, synced=False)
    assert not _is_clean(follower.stream)
    follower.sync()
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"x" * 4096)
    assert not _is_clean(follower.stream)
    tap.stop()
    assert _is_clean(follower.stream)
    start_tap()
    assert not _is_clean(Stream(attached.stream_socket))


def test_an_orderly_stop_is_believed_once(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    tap = start_tap()
    follow(tap.attach(make_disk(SIZE)).stream_socket)
    assert json.loads(_state_file(tap).read_text())["clean"] is None
    tap.stop()
    assert json.loads(_state_file(tap).read_text())["clean"] is not None
    successor = start_tap()
    assert json.loads(_state_file(successor).read_text())["clean"] is None


@pytest.mark.invariant("I4")
def test_times_do_not_run_back_with_the_wall_clock(
    start_tap: StartTap, make_disk: MakeDisk, follow: OpenStream
) -> None:
    """A tap that finds itself an hour before its own records gives none an earlier time."""
    tap = start_tap()
    attached = tap.attach(make_disk(SIZE))
    follower = follow(attached.stream_socket)
    tap.stop()
    state = json.loads(_state_file(tap).read_text())
    newest = state["clean"]["last_time"] = time.time_ns() + _HOUR_NS
    _state_file(tap).write_text(json.dumps(state))
    start_tap()
    follower.reopen(Stream(attached.stream_socket))
    follower.take()
    with nbd.Nbd(attached.nbd_socket, "d") as client:
        client.write(0, b"x" * 4096)
    (write,) = (one for one in follower.take() if one.event.length == 4096)
    assert write.time >= newest
