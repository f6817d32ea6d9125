"""Every way of naming a moment on the command line gives the bytes that the disk had then."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

import pytest

from infra.demo.report import DemoFailed
from tests.integration.nbd import NbdClient
from tests.integration.place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def rfc3339(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def write_turn(client: NbdClient, turn: int) -> bytes:
    """Turn n writes n into every byte of block n; what the disk then starts with."""
    client.write(turn * 4096, bytes([turn]) * 4096)
    return client.read(0, 16 * 4096)


@pytest.mark.invariant("I3", "I4")
def test_all_selectors_name_the_right_moment(place: Place) -> None:
    with NbdClient(place.protect()) as client:
        first = write_turn(client, 1)
        tagged = place.site.checkpoint("before-upgrade")
        second = write_turn(client, 2)
        named = place.site.checkpoint("another")
        third = write_turn(client, 3)
        between = time.time_ns()
        time.sleep(0.05)
        fourth = write_turn(client, 4)
        head = place.head()
        newest = place.site.checkpoint("again")
        fifth = write_turn(client, 5)
    place.drain()
    place.lose()
    for selector, expected in {
        "tag:before-upgrade": first,
        "before-upgrade": first,
        f"checkpoint:{tagged['checkpoint']}": first,
        f"seq:{tagged['seq']}": first,
        f"checkpoint:{named['checkpoint'][:12]}": second,
        f"seq:{tagged['seq'] + 1}": second,
        f"time:{rfc3339(between)}": third,
        f"seq:{head}": fourth,
        f"time:{rfc3339(newest['time'])}": fourth,
        "latest": fourth,
        "latest-write": fifth,
        "time:2999-01-01T00:00:00Z": fifth,
    }.items():
        assert place.export(selector)[: 16 * 4096] == expected, selector
    _list_names_them(place)
    _what_is_refused(place)


def _list_names_them(place: Place) -> None:
    told = str(place.safe.points())
    for tag in ("before-upgrade", "another", "again"):
        assert tag in told


def _what_is_refused(place: Place) -> None:
    """Inside the initial sync nothing can be chosen, nor before it, nor beyond the end."""
    for selector in ("seq:2", "seq:0", "seq:99999999", "time:1999-01-01T00:00:00Z", "nonsense"):
        with pytest.raises(DemoFailed, match=re.escape(selector.partition(":")[2] or selector)):
            place.export(selector)
