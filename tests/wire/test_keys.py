"""Keys: each opens what it should, and nothing by mistake."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import keys
from host_agent.wire.errors import BadKeyFile, BadName, HoldfastError, WrongKey
from host_agent.wire.keys import (
    GroupKey,
    TenantKey,
    check_key_object,
    key_id,
    make_data_key,
    open_with_group,
    open_with_tenant,
    unwrap,
    wrap,
)
from host_agent.wire.names import Identity
from tests.wire.samples import GENERATION, IDENTITY

TENANT = TenantKey.make("acme")
GROUP = GroupKey.make(TENANT, "erp")
DATA, OBJECT = make_data_key(GROUP, IDENTITY, GENERATION)


def test_the_tenant_key_alone_opens_a_journal() -> None:
    copy = TenantKey.parse(TENANT.dump())
    assert copy == TENANT
    assert open_with_tenant(OBJECT, copy, IDENTITY, GENERATION) == DATA
    assert len(DATA) == 32


def test_the_host_opens_its_own() -> None:
    copy = GroupKey.parse(GROUP.dump())
    assert copy == GROUP
    assert open_with_group(OBJECT, copy, IDENTITY, GENERATION) == DATA
    check_key_object(OBJECT, IDENTITY, GENERATION)


def test_every_key_is_new() -> None:
    assert TenantKey.make("acme").key != TENANT.key
    assert GroupKey.make(TENANT, "erp").key != GROUP.key
    again, other = make_data_key(GROUP, IDENTITY, GENERATION)
    assert again != DATA
    assert other != OBJECT


def test_keys_do_not_show_in_what_is_printed() -> None:
    for key in (TENANT, GROUP):
        shown = f"{key!r} {key!s}"
        assert key.key.hex() not in shown
        assert repr(key.key) not in shown
        assert base64.b64encode(key.key).decode() not in shown
        assert key.id in shown


@pytest.mark.invariant("I9")
def test_another_tenants_key_opens_nothing() -> None:
    other = TenantKey.make("acme")
    with pytest.raises(WrongKey) as caught:
        open_with_tenant(OBJECT, other, IDENTITY, GENERATION)
    assert other.id in caught.value.message
    assert TENANT.id in caught.value.message
    assert caught.value.hint


def test_another_groups_key_opens_nothing() -> None:
    with pytest.raises(WrongKey) as caught:
        open_with_group(OBJECT, GroupKey.make(TENANT, "erp"), IDENTITY, GENERATION)
    assert caught.value.hint


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("field", ["tenant", "group", "host"])
def test_key_objects_of_another_stream_are_refused(field: str) -> None:
    other = replace(IDENTITY, **{field: "other"})
    for attempt in (
        lambda: check_key_object(OBJECT, other, GENERATION),
        lambda: open_with_group(OBJECT, GROUP, other, GENERATION),
        lambda: open_with_tenant(OBJECT, TENANT, other, GENERATION),
        lambda: check_key_object(OBJECT, IDENTITY, bytes(16)),
    ):
        with pytest.raises(WrongKey):
            attempt()


def _changed(data: bytes, **change: Any) -> bytes:
    return json.dumps({**json.loads(data), **change}).encode()


@pytest.mark.invariant("I9", "I10")
@pytest.mark.parametrize("field", ["tenant", "group", "host", "generation"])
def test_a_key_object_under_another_name_does_not_open(field: str) -> None:
    """The wrapped keys are bound to their context: renaming the object does not help."""
    value = "f" * 32 if field == "generation" else "other"
    forged = _changed(OBJECT, **{field: value})
    identity = Identity(
        *[value if field == f else getattr(IDENTITY, f) for f in ("tenant", "group", "host")]
    )
    generation = bytes.fromhex(value) if field == "generation" else GENERATION
    check_key_object(forged, identity, generation)
    with pytest.raises(WrongKey):
        open_with_tenant(forged, TENANT, identity, generation)
    with pytest.raises(WrongKey):
        open_with_group(forged, GROUP, identity, generation)


def test_control_wrapping_without_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the context left out, the renamed object would open."""
    monkeypatch.setattr(keys, "_context", lambda purpose, parts: b"")
    tenant = TenantKey.make("acme")
    data, made = make_data_key(GroupKey.make(tenant, "erp"), IDENTITY, GENERATION)
    other = replace(IDENTITY, host="other")
    assert open_with_tenant(_changed(made, host="other"), tenant, other, GENERATION) == data


def test_a_wrapped_key_of_another_purpose_does_not_open() -> None:
    wrapped = wrap(TENANT.key, GROUP.key, "group", "acme", "erp")
    assert unwrap(TENANT.key, wrapped, "group", "acme", "erp") == GROUP.key
    for purpose, parts in (
        ("data", ("acme", "erp")),
        ("group", ("acme", "erp2")),
        ("group", ("acme", "erp", "")),
    ):
        with pytest.raises(WrongKey):
            unwrap(TENANT.key, wrapped, purpose, *parts)


def test_names_in_key_files_are_checked() -> None:
    for bad in ("acme\0erp", "", "A"):
        with pytest.raises(BadName):
            TenantKey.make(bad)
        with pytest.raises(BadName):
            GroupKey.make(TENANT, bad)


@pytest.mark.parametrize("swap", ["group_key", "data_key"])
def test_wrapped_keys_of_two_objects_cannot_be_mixed(swap: str) -> None:
    other = make_data_key(GroupKey.make(TENANT, "erp"), IDENTITY, GENERATION)[1]
    mixed = _changed(OBJECT, **{swap: json.loads(other)[swap]})
    with pytest.raises(WrongKey):
        open_with_tenant(mixed, TENANT, IDENTITY, GENERATION)


@pytest.mark.parametrize(
    "change",
    [
        {"holdfast": "group key"},
        {"version": 2},
        {"key": "AAAA"},
        {"key": "!" * 44},
        {"id": "0" * 16},
        {"tenant": "A"},
        {"more": 1},
        {"key": 5},
    ],
    ids=str,
)
def test_false_tenant_key_files_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((BadKeyFile, BadName)):
        TenantKey.parse(_changed(TENANT.dump(), **change))


def test_base64_has_one_form() -> None:
    text = base64.b64encode(TENANT.key).decode()
    assert text.endswith("=")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = text[:-2] + last[last.index(text[-2]) ^ 1] + "="
    assert base64.b64decode(other) == TENANT.key
    with pytest.raises(BadKeyFile):
        TenantKey.parse(_changed(TENANT.dump(), key=other))


@pytest.mark.invariant("I10")
def test_any_changed_letter_of_a_group_key_file_is_found() -> None:
    """Above all in `wrapped`: the host cannot open it, and nothing could be restored later."""
    data = GROUP.dump()
    for at in range(len(data)):
        spoiled = bytearray(data)
        spoiled[at] ^= 1
        try:
            parsed = GroupKey.parse(bytes(spoiled))
        except HoldfastError:
            continue
        assert parsed == GROUP, data[at - 10 : at + 10]


def test_control_a_group_key_file_without_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupKey, "check", "")
    spoiled = json.loads(GROUP.dump())
    spoiled["wrapped"] = ("B" if spoiled["wrapped"][0] == "A" else "A") + spoiled["wrapped"][1:]
    damaged = GroupKey.parse(json.dumps(spoiled).encode())
    made = make_data_key(damaged, IDENTITY, GENERATION)[1]
    with pytest.raises(WrongKey):
        open_with_tenant(made, TENANT, IDENTITY, GENERATION)


@pytest.mark.invariant("I10")
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_changed_key_objects_never_give_another_key(data: st.DataObject) -> None:
    spoiled = bytearray(OBJECT)
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_with_tenant(bytes(spoiled), TENANT, IDENTITY, GENERATION)
    except HoldfastError:
        return
    assert opened == DATA


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 16_000, b" " * 17_000])
def test_anything_else_is_no_key(data: bytes) -> None:
    for attempt in (
        lambda: TenantKey.parse(data),
        lambda: GroupKey.parse(data),
        lambda: check_key_object(data, IDENTITY, GENERATION),
    ):
        with pytest.raises(BadKeyFile):
            attempt()


def test_an_id_tells_nothing_of_the_key() -> None:
    assert len(TENANT.id) == 16
    assert key_id(bytes(32)) != key_id(bytes(31) + b"\1")
    assert bytes.fromhex(TENANT.id) not in TENANT.key
