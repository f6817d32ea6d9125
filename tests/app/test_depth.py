"""JSON that is nested too deeply is refused before anything takes it apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.limits import DEPTH_MAX, check_depth
from app.kit.problems import Problem
from tests.app.service import Service

pytestmark = pytest.mark.anyio
_VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\ax'),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\b'), inner, max_size=3)
    ),
    max_leaves=60,
)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@given(_VALUES, st.integers(0, 40))
def test_the_depth_is_that_of_the_values_whatever_stands_in_texts(value: Any, more: int) -> None:
    for _ in range(more):
        value = [value]
    body = json.dumps(value).encode()
    if _depth(value) <= DEPTH_MAX:
        check_depth(body)
        return
    with pytest.raises(Problem) as refused:
        check_depth(body)
    assert refused.value.code == "body_too_deep"


async def test_a_body_that_is_too_deep_or_too_large_harms_nobody(service: Service) -> None:
    tenant = await service.make_tenant()
    headers = {"content-type": "application/json"}
    for body, status, code in (
        (b"[" * 400_000, 400, "body_too_deep"),
        (b'{"a":' * 400_000, 413, "body_too_large"),
        (b'{"name": "' + b"x" * 10_000_000 + b'"}', 413, "body_too_large"),
    ):
        answer = await tenant.call("POST", "/v1/vpgs", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (await tenant.get("/v1/vpgs")).json()["items"] == []
