"""Tickets and the messages of a restore as bytes: read back, or refused by name."""

from __future__ import annotations

import random

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from host_agent.wire import envelope, limits, restoring, ticket
from host_agent.wire.crc import crc32c
from host_agent.wire.errors import ChecksumMismatch, HoldfastError, LimitExceeded, WireError
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key, open_data_key
from host_agent.wire.restoring import (
    Close,
    Data,
    Disk,
    List,
    Message,
    Open,
    Opened,
    Opening,
    Ranges,
    Read,
)
from host_agent.wire.ticket import BadTicket, Receipt, Ticket
from tests.wire.samples import GENERATION, IDENTITY

AUTHORITY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([7] * 32))
DOOR = ec.derive_private_key(8, ec.SECP256R1())
MADE = "c" * 32
TENANT = TenantKey.make("acme")
GROUP = GroupKey.make(TENANT, "erp")
RECEIPT = Receipt("host-1", "0" * 32, 7, "a" * 64)
MESSAGES: list[Message] = [
    Open(1, "ticket", "host-1", RECEIPT),
    Open(1, "ticket", "host-1"),
    Opened(RECEIPT, 5, "b" * 32, [Disk("root", 1 << 40, 5)], [("root", 0, 512)]),
    List(1, "root", 0),
    Ranges(1, [(0, 512), (4096, 1)], 8192),
    Read(2, "root", 0, 1 << 20),
    Data(2, 0, b"data", crc32c(b"data")),
    Close("bad_ticket", "No.", "Ask.", 2.0),
    Opening(7),
]


def make_ticket(group: GroupKey = GROUP, **changes: object) -> Ticket:
    """A ticket of one door."""
    door = ticket.seal_group_key(group, MADE, envelope.public_of(DOOR))
    made = Ticket(
        1, MADE, "acme", "erp", ["host-1"], "latest", "host-2", 1_800_000_000, 1_800_086_400,
        [door],
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def test_a_ticket_is_read_by_who_believes_its_authority() -> None:
    made = make_ticket()
    text = ticket.issue(made, AUTHORITY)
    assert ticket.check(text, AUTHORITY.public_key()) == made
    assert ticket.read_unbelieved(text) == made
    assert text.isascii()
    assert not set(text) & set(" \n\"'")
    with pytest.raises(BadTicket):
        ticket.check(text, ed25519.Ed25519PrivateKey.generate().public_key())


def test_its_key_is_for_its_doors_alone() -> None:
    made = make_ticket()
    other = ec.generate_private_key(ec.SECP256R1())
    opened = ticket.open_group_key(made, [other, DOOR])
    assert (opened, opened.wrapped) == (GROUP, GROUP.wrapped)
    with pytest.raises(BadTicket):
        ticket.open_group_key(made, [other])
    for field in ("tenant", "vpg", "id"):
        with pytest.raises(HoldfastError):
            value = "d" * 32 if field == "id" else "other"
            ticket.open_group_key(msgspec.structs.replace(made, **{field: value}), [DOOR])


def test_a_receipt_is_of_one_ticket_and_moment() -> None:
    made = make_ticket()
    receipt = ticket.make_receipt(made, "host-1", ("0" * 32, 7), GROUP)
    assert receipt.selector == f"seq:{'0' * 32}/7"
    assert ticket.is_receipt_of(receipt, made, GROUP)
    for changed in (
        msgspec.structs.replace(receipt, seq=8),
        msgspec.structs.replace(receipt, stream="host-2"),
        msgspec.structs.replace(receipt, generation="1" * 32),
    ):
        assert not ticket.is_receipt_of(changed, made, GROUP)
    assert not ticket.is_receipt_of(receipt, make_ticket(id="d" * 32), GROUP)
    assert not ticket.is_receipt_of(receipt, made, GroupKey.make(TENANT, "erp"))


def test_either_key_above_it_opens_a_data_key() -> None:
    group = GroupKey.make(TenantKey.make(IDENTITY.tenant), IDENTITY.group)
    data, made = make_data_key(group, IDENTITY, GENERATION)
    assert open_data_key(made, group, IDENTITY, GENERATION) == data
    with pytest.raises(HoldfastError):
        open_data_key(made, TENANT, IDENTITY, GENERATION)


def test_envelopes_of_a_server_open_with_its_key() -> None:
    public = envelope.public_of(DOOR)
    sealed = envelope.seal_to(public, b"secret", "a", "b")
    assert envelope.open_envelope(DOOR, sealed, "a", "b") == b"secret"
    with pytest.raises(HoldfastError):
        envelope.open_envelope(DOOR, sealed, "a", "c")
    with pytest.raises(WireError):
        envelope.seal_to(b"\4" + bytes(64), b"secret")
    with pytest.raises(WireError):
        envelope.public_of(ec.generate_private_key(ec.SECP384R1()))


@pytest.mark.parametrize(
    "text", ["", ".", "x", "e30=.AA==", "e30=", "ä.ö", "A" * 40_000, "e30=.!!!!", "[.]"]
)
def test_anything_else_is_no_ticket(text: str) -> None:
    with pytest.raises(HoldfastError):
        ticket.check(text, AUTHORITY.public_key())
    with pytest.raises(HoldfastError):
        ticket.read_unbelieved(text)


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"streams": []}, {"keys": []}, {"at": ""}, {"host": "../x"}]
)
def test_a_signed_ticket_has_its_form_too(changes: dict[str, object]) -> None:
    text = ticket.issue(make_ticket(GROUP, **changes), AUTHORITY)
    with pytest.raises(WireError):
        ticket.check(text, AUTHORITY.public_key())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_messages_are_read_back(message: Message) -> None:
    data = restoring.pack(message)
    number, length = restoring.parse_head(data[:16])
    assert len(data) == 16 + length
    assert restoring.parse_body(number, data[16:]) == message


def test_lengths_are_believed_within_limits_alone() -> None:
    head = restoring._pack_head(restoring.Type.DATA, limits.RESTORE_READ_BYTES_MAX + 25)
    with pytest.raises(LimitExceeded):
        restoring.parse_head(head)
    with pytest.raises(LimitExceeded):
        restoring.parse_head(restoring._pack_head(restoring.Type.LIST, 1 << 31))
    with pytest.raises(WireError):
        restoring.parse_head(restoring._pack_head(99, 0))
    assert restoring.parse_head(restoring._pack_head(200, 5)) == (200, 5)
    assert restoring.parse_body(200, b"later") is None
    with pytest.raises(LimitExceeded):
        restoring.pack(Ranges(1, [(1 << 40, 1 << 40)] * 20_000, None))


def test_data_that_changed_on_its_way_is_seen() -> None:
    data = bytearray(restoring.pack(MESSAGES[6]))
    data[-1] ^= 1
    with pytest.raises(ChecksumMismatch):
        restoring.parse_body(restoring.Type.DATA, bytes(data[16:]))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_spoiled_messages_are_refused_by_name(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(MESSAGES))
    spoiled = bytearray(restoring.pack(message))
    for _ in range(data.draw(st.integers(1, 4))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    try:
        number, _ = restoring.parse_head(bytes(spoiled[:16]))
        restoring.parse_body(number, bytes(spoiled[16:]))
    except HoldfastError:
        return


def test_random_bytes_are_no_ticket() -> None:
    rng = random.Random(3)
    for _ in range(300):
        text = rng.randbytes(rng.randrange(80)).decode("latin-1")
        with pytest.raises(HoldfastError):
            ticket.check(text, AUTHORITY.public_key())
