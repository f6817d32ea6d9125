"""Messages of the control door: total, bounded, understood wholly where they command."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import control, limits
from host_agent.wire.control import (
    Answer,
    AssignedDisk,
    AssignedGroup,
    Assignment,
    AssignmentPush,
    Body,
    Checkpoint,
    Command,
    DataKey,
    DataKeyRequest,
    Discover,
    DiskFacts,
    Event,
    Failure,
    ForceSync,
    FoundDisk,
    FoundMachine,
    FromHost,
    FromManager,
    GroupFacts,
    Heartbeat,
    Hello,
    Inventory,
    Limit,
    PathSource,
    Pause,
    Place,
    Progress,
    QmpSource,
    Restore,
    Resume,
    Taken,
    Welcome,
    Withdraw,
)
from host_agent.wire.errors import HoldfastError, LimitExceeded, WireError

HEX32, HEX64 = "0123456789abcdef" * 2, "fe" * 32
VPG = "vpg_01m0000000000000000000000"
GROUP = AssignedGroup(
    vpg=VPG,
    name="ERP, all of it",
    state="protecting",
    rpo_seconds=5.0,
    replication_mbit_per_s=None,
    sync_mbit_per_s=100.0,
    ring_mib=64,
    disks=[
        AssignedDisk("disk-0", "vda", "db1", PathSource("/dev/vg/db1")),
        AssignedDisk("disk-1", "vdb", "db1", QmpSource("/run/qemu/db1.qmp", "drive1")),
    ],
)
ASSIGNMENT = Assignment(7, "ten_a", "host_a", ["door1:443"], "ten_a.ingest", [GROUP])
FACTS = GroupFacts(
    vpg=VPG,
    phase="streaming",
    sync="in_sync",
    generation=HEX32,
    received_seq=12,
    stored_seq=10,
    stored_source_time_ns=1_700_000_000_000_000_000,
    backlog_bytes=8192,
    write_bytes_per_second=4096,
    gap_reason=None,
    disks=[DiskFacts("disk-0", "nbd+unix:///a?socket=/run/tap", "serving")],
)
REFUSED = Failure("epoch_stale", "Another manager commands.", "", retryable=False)
UP: list[FromHost] = [
    Hello("0.1.0", 3, 17, 7, 1_700_000_000_000_000_000),
    Heartbeat(1, "up", [FACTS]),
    Heartbeat(1, "down", []),
    Inventory(
        HEX64,
        [FoundMachine("db1", [FoundDisk("vda", PathSource("/dev/vg/db1"), 1 << 30)], HEX32)],
    ),
    Answer(3, 17, "done", {"seq": 5, "generation": HEX32, "share": 0.5, "whole": True}),
    Answer(3, 17, "failed", error=REFUSED),
    Progress(3, 17, 0.25, "Reading"),
    Event("tap.died", "tap", 1, {"reason": "killed"}),
    DataKeyRequest(1, msgspec.Raw(b'{"version":1}')),
]
DOWN: list[FromManager] = [
    Welcome(3, 10.0, 1, HEX64),
    control.command(3, 18, Pause(VPG)),
    AssignmentPush(3, 19, ASSIGNMENT),
    Taken(3, 18),
    DataKey(1, msgspec.Raw(b'{"version":1}')),
    DataKey(1, error=REFUSED),
]
BODIES: list[Body] = [
    Checkpoint(VPG, HEX32, "before the upgrade"),
    Pause(VPG),
    Resume(VPG),
    ForceSync(VPG, "disk-0", full=True),
    Limit(VPG, 10.5, None),
    Restore("op_1", "ticket", ["door:443"], "/srv/back"),
    Discover(),
    Place("ten_b", "hfj_token", ["control:443"]),
    Withdraw("ten_b"),
]


def _name(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", UP, ids=_name)
def test_messages_up_round_trip(message: FromHost) -> None:
    text = control.encode(message)
    again = control.decode_from_host(text)
    assert again is not None
    assert control.encode(again) == text


@pytest.mark.parametrize("message", DOWN, ids=_name)
def test_messages_down_round_trip(message: FromManager) -> None:
    text = control.encode(message)
    again = control.decode_from_manager(text)
    assert again is not None
    assert control.encode(again) == text


@pytest.mark.parametrize("body", BODIES, ids=_name)
def test_bodies_of_commands_round_trip(body: Body) -> None:
    message = control.decode_from_manager(control.encode(control.command(1, 2, body)))
    assert isinstance(message, Command)
    assert control.body_of(message) == body


def test_every_type_has_a_sample_and_a_line_in_the_format() -> None:
    def tag(kind: type) -> str:
        return str(kind.__struct_config__.tag)  # type: ignore[attr-defined]

    sampled = {tag(type(message)) for message in [*UP, *DOWN]}
    assert sampled == control._TYPES
    assert {type(body) for body in BODIES} == set(control.BODIES.values())
    text = (control.__file__.rpartition("/")[0]) + "/FORMAT.md"
    with open(text) as file:
        section = file.read().partition("## 11. Control")[2]
    assert all(f"`{word}`" in section for word in sampled | set(control.BODIES))


@pytest.mark.parametrize("message", UP, ids=_name)
def test_a_fact_may_have_fields_of_a_newer_version(message: FromHost) -> None:
    text = control.encode(message)
    fields = {**json.loads(text), "of_a_newer_version": [1, {"a": None}]}
    again = control.decode_from_host(msgspec.json.encode(fields))
    assert again is not None
    assert control.encode(again) == text


@pytest.mark.parametrize("message", DOWN, ids=_name)
def test_what_commands_is_refused_with_a_field_that_is_not_known(message: FromManager) -> None:
    fields = {**json.loads(control.encode(message)), "only_if": "monday"}
    with pytest.raises(WireError, match="only_if"):
        control.decode_from_manager(json.dumps(fields))


@pytest.mark.parametrize("body", BODIES, ids=_name)
def test_a_command_is_refused_with_a_field_that_is_not_known(body: Body) -> None:
    asked = control.command(1, 1, body)
    fields = {**json.loads(bytes(asked.body)), "only_if": "monday"}
    with pytest.raises(WireError, match="only_if"):
        control.body_of(Command(1, 1, asked.kind, msgspec.Raw(json.dumps(fields).encode())))


def test_a_command_of_an_unknown_kind_says_so() -> None:
    with pytest.raises(control.UnknownCommand, match="levitate"):
        control.body_of(Command(1, 1, "levitate", msgspec.Raw(b"{}")))


@pytest.mark.parametrize("decode", [control.decode_from_host, control.decode_from_manager])
def test_an_unknown_type_is_skipped(decode: Any) -> None:
    assert decode('{"type": "of_a_newer_version", "anything": [1, {"a": 2}]}') is None


@pytest.mark.parametrize("message", [*UP, *DOWN], ids=_name)
def test_no_message_goes_the_wrong_way(message: FromHost | FromManager) -> None:
    wrong = control.decode_from_manager if message in UP else control.decode_from_host
    with pytest.raises(WireError):
        wrong(control.encode(message))


def _mutations(value: Any) -> list[Any]:
    """The value with each of its parts replaced by something of another type."""
    if isinstance(value, dict):
        inner = [{**value, k: new} for k, old in value.items() for new in _mutations(old)]
        return [
            *inner,
            [value],
            7,
            *({k: v for k, v in value.items() if k != gone} for gone in value),
        ]
    if isinstance(value, list):
        return [[*value[:i], new, *value[i + 1 :]] for i, old in enumerate(value)
                for new in _mutations(old)] + [{}, "x"]  # fmt: skip
    return [[], {}, None, True, -1, 1 << 80, 2.5, "\x1b[2J", "x" * 100_000, "\x00"]


@pytest.mark.parametrize("message", [*UP, *DOWN], ids=_name)
def test_wrong_types_are_refused_or_mean_a_message(message: FromHost | FromManager) -> None:
    decode: Any = control.decode_from_host if message in UP else control.decode_from_manager
    refused = 0
    for fields in _mutations(json.loads(control.encode(message))):
        try:
            again = decode(json.dumps(fields))
        except WireError:
            refused += 1
            continue
        if again is not None and not isinstance(again, Command | DataKey | DataKeyRequest):
            text = control.encode(again)
            assert "\\u00" not in text.lower()
            assert len(text) < 50_000
    assert refused > 5


HOSTILE = [
    "", "[", "1", "null", '"hello"', "[]", "{}", '{"type": null}', '{"type": 7}', '{"type": ""}',
    '{"type": ["hello"]}', '{"type": "hello"}', '{"type":"hello","type":"welcome"}',
    '{"type": "hello", "epoch": 1e400}', '{"type": "\\ud800"}', "\ufeff{}", "{" * 100_000,
    '{"type":"event","kind":"a.b","subject":"","time_ns":1,"data":' + '{"a":' * 50_000,
    '{"type":"new","x":' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"type":"event","kind":"a.b","subject":"\ud800","time_ns":1}',
    '{"type":"event","kind":"a.b","subject":"\\u0000","time_ns":1}',
    '{"type":"event","kind":"a.b","subject":"","time_ns":NaN}',
]  # fmt: skip


@pytest.mark.parametrize("decode", [control.decode_from_host, control.decode_from_manager])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_refused(decode: Any, text: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(text)
    assert len(caught.value.message) < 400
    assert "\x00" not in caught.value.message


def test_a_body_nested_too_deeply_is_refused_when_it_is_read() -> None:
    deep = b'{"vpg":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(WireError):
        control.body_of(Command(1, 1, "pause", msgspec.Raw(deep)))


def test_details_are_flat_few_and_plain() -> None:
    def event(data: object) -> str:
        return json.dumps(
            {"type": "event", "kind": "a.b", "subject": "", "time_ns": 1, "data": data}
        )

    assert control.decode_from_host(event({"a": 1})) is not None
    many = {f"f{n}": n for n in range(limits.CONTROL_DETAILS_MAX + 1)}
    for data in ({"a": [1]}, {"a": {"b": 1}}, {"A B": 1}, {"a": "\x1b[31m"}, {"a": 1 << 63}, many):
        with pytest.raises(WireError):
            control.decode_from_host(event(data))


def test_a_message_over_the_limit_is_neither_sent_nor_read() -> None:
    large = Heartbeat(1, "up", [FACTS] * 4_000)
    with pytest.raises(LimitExceeded):
        control.encode(large)
    with pytest.raises(LimitExceeded):
        control.decode_from_host(" " * (limits.CONTROL_MESSAGE_BYTES_MAX + 1))
    many = {"type": "heartbeat", "time_ns": 1, "tap": "up"}
    facts = json.loads(control.encode(Heartbeat(1, "up", [FACTS])))["groups"][0] | {"disks": []}
    with pytest.raises(WireError):
        control.decode_from_host(json.dumps({**many, "groups": [facts] * 513}))


def test_texts_are_made_plain_for_sending() -> None:
    assert control.plain("a\nb\x1b[31mc\x00\x9b ") == "a b [31mc"
    error = HoldfastError("It\nbroke" + "!" * 5_000, hint="Mend\tit.")
    failure = control.failure_of(error)
    assert failure.message.startswith("It broke!")
    assert len(failure.message) == 2048
    assert control.decode_from_host(control.encode(Answer(1, 1, "failed", error=failure)))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_nothing_but_a_wire_error_comes_of_any_bytes(data: bytes | str) -> None:
    for decode in (control.decode_from_host, control.decode_from_manager):
        with contextlib.suppress(WireError):
            decode(data)
