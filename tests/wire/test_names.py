"""Names: what may be one, and what each object is called."""

from __future__ import annotations

import ssl

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import names
from host_agent.wire.errors import BadName
from host_agent.wire.names import Identity, check_name
from tests.wire.samples import GENERATION, IDENTITY


@pytest.mark.parametrize("name", ["a", "0", "host-1", "a.b_c-d", "x" * 63, "a.."])
def test_good_names(name: str) -> None:
    assert check_name("host", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "_a", "A", "a/b", "a\0b", "a b", "x" * 64, "ä", "a\n", "\u0661", "a\\b"],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(BadName) as caught:
        check_name("host", name)
    assert caught.value.hint
    for place in range(3):
        parts = ["t", "g", "h"]
        parts[place] = name
        with pytest.raises(BadName):
            Identity(*parts)


def test_no_group_lies_where_the_statements_do() -> None:
    with pytest.raises(BadName):
        Identity("acme", "asof", "0000000000000001")
    assert Identity("asof", "erp", "asof").prefix == "asof/erp/asof/"


@given(st.text(max_size=10))
@settings(max_examples=200, deadline=None)
def test_names_are_safe_or_refused(text: str) -> None:
    try:
        check_name("tenant", text)
    except BadName:
        return
    assert text.isascii()
    assert not set(text) & set("/\\\0 \n")
    assert text not in {".", ".."}


def test_object_names() -> None:
    assert names.chain_name(IDENTITY, 1) == "acme/erp/host-1/chain/0000000000000001"
    assert names.chain_prefix(IDENTITY) == "acme/erp/host-1/chain/"
    assert names.key_name(IDENTITY, GENERATION) == f"acme/erp/host-1/keys/{GENERATION.hex()}"
    assert names.asof_name("acme", 255) == "acme/asof/00000000000000ff"


@pytest.mark.parametrize("number", [0, -1, 1 << 63, 1 << 64])
def test_impossible_numbers_have_no_name(number: int) -> None:
    with pytest.raises(BadName):
        names.chain_name(IDENTITY, number)
    with pytest.raises(BadName):
        names.asof_name("acme", number)


def test_generations_of_another_length_have_no_name() -> None:
    with pytest.raises(BadName):
        names.key_name(IDENTITY, bytes(15))


@given(st.integers(1, (1 << 63) - 1))
@settings(max_examples=50, deadline=None)
def test_places_are_read_back_and_sort_as_they_count(place: int) -> None:
    name = names.chain_name(IDENTITY, place)
    assert names.place_of(name) == place
    if place > 1:
        assert names.chain_name(IDENTITY, place - 1) < name


@pytest.mark.parametrize(
    "name",
    [
        "acme/erp/host-1/chain/",
        "acme/erp/host-1/chain/1",
        "acme/erp/host-1/chain/000000000000000G",
        "acme/erp/host-1/chain/000000000000000A",
        "acme/erp/host-1/chain/0000000000000001.tmp",
        "acme/erp/host-1/chain/00000000000000001",
        "acme/erp/host-1/chain/0000000000000000",
        "acme/erp/host-1/keys/0000000000000001",
        "0000000000000001",
        "",
    ],
)
def test_other_names_state_no_place(name: str) -> None:
    assert names.place_of(name) is None


def test_identities_cannot_be_confused() -> None:
    assert IDENTITY.seal_bytes == b"acme\0erp\0host-1\0"
    assert IDENTITY.hash == blake3(b"acme\0erp\0host-1\0").digest()
    assert str(IDENTITY) == "acme/erp/host-1"
    assert Identity("a", "bc", "d").hash != Identity("ab", "c", "d").hash


def test_certificates_name_tenant_and_host() -> None:
    uri = names.agent_san("acme", "host-1")
    assert uri == "spiffe://holdfast/tenant/acme/agent/host-1"
    assert names.parse_san(uri) == ("acme", "host-1")


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://holdfast/tenant/acme/agent/",
        "spiffe://holdfast/tenant/acme/agent/host-1/",
        "spiffe://holdfast/tenant/acme/agent/host-1\n",
        "spiffe://holdfast/tenant/acme/x/agent/host-1",
        "spiffe://holdfast/tenant/ACME/agent/host-1",
        "spiffe://holdfast/tenant/../agent/host-1",
        "spiffe://other/tenant/acme/agent/host-1",
        "https://holdfast/tenant/acme/agent/host-1",
        " spiffe://holdfast/tenant/acme/agent/host-1",
    ],
)
def test_other_uris_name_nobody(uri: str) -> None:
    with pytest.raises(BadName):
        names.parse_san(uri)


TENANT = "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"


@pytest.mark.parametrize("service", [names.INGEST, names.RESTORE])
def test_a_tenant_service_has_a_server_name_that_clients_take(service: str) -> None:
    name = names.server_name(TENANT, service)
    assert name == f"ten-01hq3v5k8m9n2p4r6s7t8w9x0z.{service}"
    assert names.parse_server_name(name) == (TENANT, service)
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), False, name)
    assert tls.server_hostname == name


@pytest.mark.parametrize("tenant", ["acme", "ten_x", "ten-01hq3v5k8m9n2p4r6s7t8w9x0z", ""])
def test_what_is_no_tenant_identifier_has_no_server_name(tenant: str) -> None:
    with pytest.raises(BadName):
        names.server_name(tenant, names.INGEST)


@pytest.mark.invariant("I9")
@given(st.text(alphabet="tenhos0123456789az._-ingest\n\0A", max_size=45))
@settings(max_examples=300, deadline=None)
def test_a_server_name_is_read_back_or_refused(name: str) -> None:
    try:
        tenant, service = names.parse_server_name(name)
    except BadName:
        return
    assert names.server_name(tenant, service) == name


@pytest.mark.invariant("I9")
@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        TENANT + ".ingest",
        "ten-01hq3v5k8m9n2p4r6s7t8w9x0z.ingest.",
        "ten-01hq3v5k8m9n2p4r6s7t8w9x0z.INGEST",
        "ten-01hq3v5k8m9n2p4r6s7t8w9x0z.other",
        "ten-01hq3v5k8m9n2p4r6s7t8w9x0z.ingest\n",
        "*.ingest",
    ],
)
def test_other_server_names_name_no_tenant(name: str) -> None:
    with pytest.raises(BadName):
        names.parse_server_name(name)


def test_data_nodes_have_names_of_their_own_kind() -> None:
    uri = names.datanode_san("node_1")
    assert names.parse_datanode_san(uri) == "node_1"
    with pytest.raises(BadName):
        names.parse_san(uri)
    with pytest.raises(BadName):
        names.parse_datanode_san(names.agent_san("acme", "host-1"))
