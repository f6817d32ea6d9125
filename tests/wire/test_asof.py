"""Statements: what is changed is never believed."""

from __future__ import annotations

import json

import pytest

from host_agent.wire.asof import Statement, decode_asof, encode_asof
from host_agent.wire.errors import WireError

STATEMENTS = {"shop/host1": Statement("ab" * 16, 69, 1_700_000_000_000_000_000, "recording")}
DATA = encode_asof(1_700_000_000_000_000_001, bytes(range(16)), STATEMENTS)


def test_it_is_read_back() -> None:
    assert decode_asof(DATA).streams == STATEMENTS
    assert json.loads(DATA)["streams"]["shop/host1"]["seq"] == 69


def test_every_changed_bit_is_seen() -> None:
    for at in range(len(DATA)):
        for bit in range(8):
            changed = DATA[:at] + bytes([DATA[at] ^ 1 << bit]) + DATA[at + 1 :]
            with pytest.raises(WireError):
                decode_asof(changed)


def test_what_is_cut_or_grown_is_seen() -> None:
    for at in range(len(DATA)):
        with pytest.raises(WireError):
            decode_asof(DATA[:at])
    for grown in (DATA + b"\n", b" " + DATA, DATA + DATA):
        with pytest.raises(WireError):
            decode_asof(grown)
