"""What a selector's text may mean, and that times go in and out unchanged."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.journal.errors import BadSelector
from workers.journal.selectors import (
    ByCheckpoint,
    BySeq,
    ByTag,
    ByTime,
    Latest,
    LatestWrite,
    Selector,
    format_time,
    parse,
    parse_time,
)

NOON = 1_769_860_800_000_000_000  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("latest", Latest()),
        ("latest-write", LatestWrite()),
        ("checkpoint:00112233445566778899aabbccddeeff",
         ByCheckpoint("00112233445566778899aabbccddeeff")),
        ("checkpoint:AABBCCDD", ByCheckpoint("aabbccdd")),
        ("tag:before the upgrade: 2", ByTag("before the upgrade: 2")),
        ("tag:latest", ByTag("latest")),
        ("seq:17", BySeq(17)),
        ("seq:abcd/17", BySeq(17, "abcd")),
        ("time:2026-01-31T12:00:00Z", ByTime(NOON)),
        ("time:2026-01-31 14:00:00.000000001+02:00", ByTime(NOON + 1)),
        ("time:2026-01-31t07:00:00.5-05:00", ByTime(NOON + 500_000_000)),
    ],
)  # fmt: skip
def test_a_prefixed_selector_means_one_thing(text: str, meaning: Selector) -> None:
    assert parse(text) == [meaning]


@pytest.mark.parametrize(
    ("text", "meanings"),
    [
        ("nightly", [ByTag("nightly")]),
        ("17", [ByTag("17"), BySeq(17)]),
        ("12345678", [ByTag("12345678"), ByCheckpoint("12345678"), BySeq(12345678)]),
        ("2026-01-31T12:00:00Z", [ByTag("2026-01-31T12:00:00Z"), ByTime(NOON)]),
        ("unknown:thing", [ByTag("unknown:thing")]),
    ],
)
def test_a_bare_word_may_mean_several(text: str, meanings: list[Selector]) -> None:
    assert parse(text) == meanings


@pytest.mark.parametrize(
    "text",
    ["", "x" * 600, "checkpoint:", "checkpoint:abc", "checkpoint:xyzxyzxyz", "tag:", "seq:",
     "seq:-1", "seq:1.5", "seq:12345678901234567890", "seq:xy/1", "time:", "time:yesterday",
     "time:2026-01-31", "time:2026-01-31T12:00:00", "time:2026-02-30T12:00:00Z",
     "time:1969-12-31T23:59:59Z", "time:2026-01-31T12:00:00.1234567890Z"],
)  # fmt: skip
def test_what_is_no_selector_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BadSelector) as raised:
        parse(text)
    assert raised.value.message
    assert raised.value.code == "bad_selector"


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_times_come_back_unchanged(nanoseconds: int) -> None:
    assert parse_time(format_time(nanoseconds)) == nanoseconds


@given(st.integers(86_400, 253_402_000_000), st.integers(-1439, 1439))
def test_offsets_are_counted(seconds: int, minutes: int) -> None:
    sign = "-" if minutes < 0 else "+"
    zone = f"{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    moment = datetime.fromtimestamp(seconds, UTC)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + zone
    expected = seconds - minutes * 60
    if expected >= 0:
        assert parse_time(text) == expected * 1_000_000_000
