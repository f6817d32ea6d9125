"""Identifiers, tokens, cursors and sealed values, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.identity.tokens import make_token, parse_token
from app.kit.ids import BadId, Kind, decode, encode, new_uuid, parse, show
from app.kit.paging import read_cursor, write_cursor
from app.kit.problems import Problem
from app.kit.sealing import Sealer

SEALER, OTHER = Sealer(bytes(32)), Sealer(b"\1" * 32)
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@given(st.uuids())
def test_an_identifier_is_its_uuid(value: UUID) -> None:
    assert decode(encode(value)) == value
    assert parse(Kind.SITE, show(Kind.SITE, value)) == value


@given(st.text(max_size=40))
def test_any_other_text_is_no_identifier(text: str) -> None:
    try:
        value = decode(text)
    except BadId:
        return
    assert encode(value) == text


def test_an_identifier_of_another_kind_is_refused() -> None:
    with pytest.raises(BadId):
        parse(Kind.SITE, show(Kind.TENANT, new_uuid(NOW)))


def test_identifiers_are_ordered_by_time() -> None:
    made = [new_uuid(NOW + timedelta(milliseconds=number)) for number in range(100)]
    assert sorted(map(encode, made)) == [encode(value) for value in made]
    assert all(value.version == 7 for value in made)


@pytest.mark.parametrize("tenant", [new_uuid(NOW), None])
def test_a_token_is_read_back_and_matches_itself_alone(tenant: UUID | None) -> None:
    token, second = make_token(tenant, new_uuid(NOW)), make_token(tenant, new_uuid(NOW))
    assert parse_token(token.text) == token
    assert token.matches(SEALER, token.fingerprint(SEALER))
    assert not second.matches(SEALER, token.fingerprint(SEALER))
    assert not token.matches(OTHER, token.fingerprint(SEALER))
    assert token.secret not in repr(token)


@given(st.text(max_size=150))
def test_any_other_text_is_no_token(text: str) -> None:
    token = parse_token(text)
    assert token is None or token.text == text


@given(st.lists(st.one_of(st.text(max_size=20), st.integers(-9, 9)), max_size=3))
def test_a_cursor_is_of_its_list_and_its_service(position: list[object]) -> None:
    cursor = write_cursor(SEALER, "sites", position)
    assert read_cursor(SEALER, "sites", cursor) == position
    for sealer, listed in ((SEALER, "keys"), (OTHER, "sites")):
        with pytest.raises(Problem):
            read_cursor(sealer, listed, cursor)


def test_a_sealed_value_opens_at_its_own_place_alone() -> None:
    sealed = SEALER.seal(b"secret", "users", "1")
    assert SEALER.open(sealed, "users", "1") == b"secret"
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for sealer, value, context in (
        (SEALER, sealed, ("users", "2")),
        (OTHER, sealed, ("users", "1")),
        (SEALER, changed, ("users", "1")),
    ):
        with pytest.raises(ValueError, match="does not open"):
            sealer.open(value, *context)
