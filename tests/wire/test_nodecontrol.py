"""Messages between data nodes and their manager: read back, refused, passed over."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import control, nodecontrol
from host_agent.wire.control import Failure
from host_agent.wire.errors import WireError
from host_agent.wire.nodecontrol import (
    CertificateRequest,
    FromManager,
    FromNode,
    NodeCertificate,
    NodeFacts,
    NodeHello,
    NodeWelcome,
    Records,
    StreamFacts,
    TenantRecord,
)
from host_agent.wire.serving import (
    HostRight,
    Quotas,
    ServingRecord,
    StoreAccess,
    decode_record,
    encode_record,
)

TENANT = "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"
STREAM = StreamFacts(TENANT, "vpg_a", "host_a", True, "0a" * 16, 3, 20, 17, 5, 6, "recording")
RECORD = ServingRecord(
    tenant=TENANT,
    version=4,
    intermediate="-----BEGIN CERTIFICATE-----",
    store=StoreAccess("s3://bucket/p", "static", "key", "secret-of-the-store"),
    hosts=[HostRight("host_a", ["vpg_a"]), HostRight("host_b", ["*"])],
    denied=["host_c"],
    quotas=Quotas(connections_max=10),
)
UP: list[FromNode] = [
    NodeHello("0.1.0", 1, {TENANT: 4}),
    CertificateRequest(1, "-----BEGIN CERTIFICATE REQUEST-----", TENANT, "ingest"),
    CertificateRequest(2, "-----BEGIN CERTIFICATE REQUEST-----"),
    NodeFacts(1, [STREAM]),
]
DOWN: list[FromManager] = [
    NodeWelcome(5.0, 1),
    Records([TenantRecord(TENANT, 4, msgspec.Raw(encode_record(RECORD)))], [TENANT]),
    Records([TenantRecord(TENANT, 5)]),
    NodeCertificate(1, "-----BEGIN CERTIFICATE-----"),
    NodeCertificate(1, error=Failure("not_served", "This tenant is not served here.")),
]


def _decode(message: FromNode | FromManager, text: str) -> Any:
    if isinstance(message, FromNode):
        return nodecontrol.decode_from_node(text)
    return nodecontrol.decode_from_manager(text)


@pytest.mark.parametrize("message", [*UP, *DOWN], ids=lambda message: type(message).__name__)
def test_messages_are_read_back(message: FromNode | FromManager) -> None:
    text = control.encode(message)
    assert control.encode(_decode(message, text)) == text
    wrong_way = nodecontrol.decode_from_manager if message in UP else nodecontrol.decode_from_node
    with pytest.raises(WireError):
        wrong_way(text)


@pytest.mark.parametrize("message", UP, ids=lambda message: type(message).__name__)
def test_facts_may_carry_more_than_is_known(message: FromNode) -> None:
    fields = json.loads(control.encode(message)) | {"from_a_newer_version": [1]}
    assert nodecontrol.decode_from_node(json.dumps(fields)) == message


@pytest.mark.parametrize("message", DOWN, ids=lambda message: type(message).__name__)
def test_orders_are_understood_wholly(message: FromManager) -> None:
    fields = json.loads(control.encode(message)) | {"from_a_newer_version": [1]}
    with pytest.raises(WireError):
        nodecontrol.decode_from_manager(json.dumps(fields))


def test_an_unknown_type_is_passed_over() -> None:
    assert nodecontrol.decode_from_node('{"type":"newer","x":1}') is None
    assert nodecontrol.decode_from_manager('{"type":"newer","x":1}') is None


@given(st.sampled_from([*UP, *DOWN]), st.integers(0, 300), st.characters())
@settings(max_examples=300, deadline=None)
def test_damaged_messages_have_an_answer(
    message: FromNode | FromManager, at: int, letter: str
) -> None:
    text = control.encode(message)
    damaged = text[:at] + letter + text[at + 1 :]
    try:
        _decode(message, damaged)
    except WireError:
        return


def test_a_record_is_read_back_and_may_carry_more_than_is_known() -> None:
    data = encode_record(RECORD)
    assert decode_record(data) == RECORD
    newer = json.loads(data) | {"of_a_newer_version": True}
    assert decode_record(json.dumps(newer).encode()) == RECORD


def test_a_record_does_not_show_its_credential() -> None:
    assert "secret-of-the-store" not in repr(RECORD)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "../x"},
        {"version": 0},
        {"hosts": [{"host": "a/b", "groups": ["*"]}]},
        {"hosts": [{"host": "a", "groups": ["**"]}]},
        {"denied": ["A"]},
        {"store": {"url": "", "wall": "static"}},
        {"store": {"url": "file:///x", "wall": "none"}},
        {"quotas": {"connections_max": 0}},
        {"intermediate": ""},
    ],
)
def test_a_record_that_is_none_is_refused_without_its_values(change: dict[str, Any]) -> None:
    fields = json.loads(encode_record(RECORD)) | change
    with pytest.raises(WireError) as refused:
        decode_record(json.dumps(fields).encode())
    assert "secret-of-the-store" not in str(refused.value)
