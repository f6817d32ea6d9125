"""The data key's way to its host: relays can neither read it, nor change it, nor ask for it."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from host_agent.wire import envelope, keyrequest
from host_agent.wire.errors import BadName, HoldfastError, UnsealFailed, WireError, WrongKey
from host_agent.wire.keyrequest import (
    Asked,
    DataKeyAnswer,
    DataKeyRequest,
    HostIdentity,
    answer_to,
    ask,
    certificates_of,
    is_signed,
    parse,
    to_builtins,
)
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
from host_agent.wire.signing import is_signed_by, sign
from tests.wire.make_golden import key_exchange
from tests.wire.samples import GENERATION, IDENTITY

GROUP = GroupKey.make(TenantKey.make(IDENTITY.tenant), IDENTITY.group)
DATA, OBJECT = make_data_key(GROUP, IDENTITY, GENERATION)
CHAIN = key_exchange()[0].request.chain
HOST = HostIdentity(ed25519.Ed25519PrivateKey.from_private_bytes(bytes([1] * 32)), CHAIN)


def _relayed(asked: Asked) -> DataKeyRequest:
    """As it arrives behind two messages of JSON."""
    return parse(to_builtins(asked.request), DataKeyRequest)


def test_the_host_that_asked_gets_the_key() -> None:
    asked = ask(HOST, IDENTITY, GENERATION)
    request = _relayed(asked)
    leaf, _ = certificates_of(request)
    assert is_signed(request, leaf)
    answer = parse(to_builtins(answer_to(request, DATA, OBJECT)), DataKeyAnswer)
    assert asked.open(answer) == (DATA, OBJECT)


def test_a_key_of_the_journal_is_opened_again() -> None:
    asked = ask(HOST, IDENTITY, GENERATION, OBJECT)
    assert asked.request.key_object == OBJECT.decode()
    assert asked.open(answer_to(_relayed(asked), DATA, OBJECT)) == (DATA, OBJECT)
    _, other = make_data_key(GROUP, IDENTITY, GENERATION)
    with pytest.raises(WrongKey):
        asked.open(answer_to(asked.request, DATA, other))


def test_nobody_between_sees_the_key() -> None:
    asked = ask(HOST, IDENTITY, GENERATION)
    shown = str(to_builtins(asked.request)) + str(
        to_builtins(answer_to(asked.request, DATA, OBJECT))
    )
    for text in (DATA.hex(), base64.b64encode(DATA).decode(), repr(DATA)):
        assert text not in shown
    stranger = Asked(asked.request, X25519PrivateKey.generate())
    with pytest.raises(UnsealFailed):
        stranger.open(answer_to(asked.request, DATA, OBJECT))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "other"),
        ("vpg", "other"),
        ("host", "other"),
        ("generation", "f" * 32),
        ("public_key", base64.b64encode(bytes([9] * 32)).decode()),
        # Made anew by each process, which a test's name must not show.
        pytest.param("key_object", OBJECT.decode(), id="key_object"),
        pytest.param("chain", CHAIN + "\n", id="chain"),
    ],
)
@pytest.mark.invariant("I9")
def test_a_request_that_was_changed_is_not_signed(field: str, value: str) -> None:
    request = ask(HOST, IDENTITY, GENERATION).request
    leaf, _ = certificates_of(request)
    assert is_signed(request, leaf)
    assert not is_signed(changed(request, **{field: value}), leaf)


@pytest.mark.invariant("I9")
def test_another_hosts_key_signs_nothing_for_this_one() -> None:
    leaf, _ = certificates_of(ask(HOST, IDENTITY, GENERATION).request)
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        forged = ask(HostIdentity(key, CHAIN), IDENTITY, GENERATION).request
        assert not is_signed(forged, leaf)


def test_a_host_with_an_elliptic_key_signs_as_well() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert is_signed_by(key.public_key(), sign(key, b"data"), b"data")
    assert not is_signed_by(key.public_key(), sign(key, b"data"), b"date")
    other = ec.generate_private_key(ec.SECP384R1())
    assert not is_signed_by(other.public_key(), sign(other, b"data"), b"data")
    assert not is_signed_by("no key", b"", b"data")


@pytest.mark.invariant("I9")
@pytest.mark.parametrize("field", ["tenant", "vpg", "host", "generation", "key_object", "sealed"])
def test_an_answer_that_was_changed_does_not_open(field: str) -> None:
    asked = ask(HOST, IDENTITY, GENERATION)
    answer = answer_to(asked.request, DATA, OBJECT)
    _, other = make_data_key(GROUP, IDENTITY, GENERATION)
    sealed = bytearray(base64.b64decode(answer.sealed))
    sealed[-1] ^= 1
    value = {
        "generation": "f" * 32,
        "key_object": other.decode(),
        "sealed": base64.b64encode(sealed).decode(),
    }.get(field, "other")
    with pytest.raises(HoldfastError) as caught:
        asked.open(changed(answer, **{field: value}))
    assert isinstance(caught.value, WrongKey | UnsealFailed)


def test_an_answer_to_an_earlier_request_does_not_open() -> None:
    first, second = ask(HOST, IDENTITY, GENERATION), ask(HOST, IDENTITY, GENERATION)
    with pytest.raises(UnsealFailed):
        second.open(answer_to(first.request, DATA, OBJECT))


def test_control_an_envelope_without_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the context left out, an answer for another key object would open."""
    monkeypatch.setattr(envelope, "_authenticated", lambda context: b"")
    asked = ask(HOST, IDENTITY, GENERATION)
    _, other = make_data_key(GROUP, IDENTITY, GENERATION)
    swapped = changed(answer_to(asked.request, DATA, OBJECT), key_object=other.decode())
    assert asked.open(swapped) == (DATA, other)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "1"},
        {"generation": "F" * 32},
        {"generation": "f" * 31},
        {"chain": "x" * 20_000},
        {"public_key": "A" * 2000},
        {"key_object": "{" * 20_000},
        {"tenant": "x" * 64},
        {"extra": 1},
        {"signature": None},
    ],
)
def test_a_message_of_another_form_is_refused(change: dict[str, Any]) -> None:
    plain = to_builtins(ask(HOST, IDENTITY, GENERATION).request)
    with pytest.raises(WireError):
        parse({**plain, **change}, DataKeyRequest)
    for nothing in (None, "x", {"version": 1}, 7):
        with pytest.raises(WireError):
            parse(nothing, DataKeyAnswer)


@pytest.mark.parametrize("name", ["", "A", "a\0b", "../x", "ü"])
def test_names_are_names(name: str) -> None:
    plain = to_builtins(ask(HOST, IDENTITY, GENERATION).request)
    with pytest.raises(BadName):
        parse({**plain, "tenant": name}, DataKeyRequest)


@pytest.mark.parametrize("chain", ["", "x", CHAIN[: len(CHAIN) // 2], CHAIN + CHAIN])
def test_a_chain_is_two_certificates(chain: str) -> None:
    request = ask(replace(HOST, chain=chain), IDENTITY, GENERATION).request
    with pytest.raises(WireError):
        certificates_of(request)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytes(32)])
def test_nothing_is_sealed_to_what_is_no_key(key: bytes) -> None:
    """32 zero bytes are a point of low order: whoever relays would know the shared secret."""
    with pytest.raises(WireError):
        envelope.seal_to(key, DATA)


def test_an_envelope_has_limits() -> None:
    key = X25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    largest = bytes(envelope.PLAIN_BYTES_MAX)
    assert envelope.open_envelope(key, envelope.seal_to(public, largest, "a"), "a") == largest
    with pytest.raises(WireError):
        envelope.seal_to(public, largest + b"x")
    for length in (0, 47, 48 + envelope.PLAIN_BYTES_MAX + 1):
        with pytest.raises(WireError):
            envelope.open_envelope(key, bytes(length))


def test_what_is_no_text_is_no_key_object() -> None:
    with pytest.raises(WireError):
        ask(HOST, IDENTITY, GENERATION, b"\xff")


@settings(max_examples=100)
@given(st.data())
def test_a_spoiled_answer_is_refused_by_name(data: st.DataObject) -> None:
    """Whatever a relay makes of an answer: the key that was meant, or a named error."""
    asked, answer = key_exchange()
    plain = to_builtins(answer)
    field = data.draw(st.sampled_from(sorted(plain)))
    plain[field] = data.draw(st.text(max_size=40) | st.integers() | st.none())
    try:
        opened, _ = asked.open(parse(plain, DataKeyAnswer))
    except HoldfastError:
        return
    assert opened == asked.open(answer)[0]


def test_requests_are_never_equal() -> None:
    first, second = (ask(HOST, IDENTITY, GENERATION).request for _ in range(2))
    assert first.public_key != second.public_key
    assert keyrequest.to_builtins(first) != keyrequest.to_builtins(second)
