"""Thousands of probes across tenants: every path, method and kind of identifier, in three modes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.service import running_service
from tests.app.test_isolation import (
    BODIES,
    CANARY,
    World,
    _broken,
    absent,
    make_world,
    routes_of,
    scope_removed,
    shown,
    switch_rls_off,
)
from tests.servers.postgres import Cluster

pytestmark = [pytest.mark.anyio, pytest.mark.soak]
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: In each of the three modes.
PROBES_MIN = 1_700


async def _probe(world: World, method: str, path: str, identifier: str) -> tuple[Any, ...]:
    """One request with this identifier in every place of the path."""
    parts = [identifier if part.startswith("{") else part for part in _parts(path)]
    body = BODIES.get(f"{method} {path}")
    answer = await world.own.call(method, "".join(parts), json=body, headers={"if-match": "*"})
    assert answer.status_code >= 400, (method, path, identifier, answer.text)
    assert answer.status_code < 500, (method, path, identifier, answer.text)
    assert CANARY not in answer.text, (method, path, identifier)
    return shown(answer)


def _parts(path: str) -> list[str]:
    """A path in pieces: what is a parameter, and what is not."""
    pieces: list[str] = []
    for piece in path.replace("}", "}\0").split("\0"):
        before, brace, name = piece.partition("{")
        pieces += [before, brace + name]
    return [piece for piece in pieces if piece]


async def _seen(world: World) -> dict[str, str]:
    """Everything that the other tenant can list."""
    lists = [path for method, path in routes_of(world.service) if method == "GET"]
    plain = [path for path in lists if "{" not in path and ":" not in path]
    own = [path for path in plain if not path.startswith("/v1/provider/")]
    found = {path: (await world.other.get(path)).json() for path in own}
    # A key shows that it is read with, by the minute; a group shows how time goes on.
    for key in found["/v1/api-keys"]["items"]:
        key.pop("last_used_at")
    for vpg in found["/v1/vpgs"]["items"]:
        for name in ("sla", "rpo_actual_seconds", "history_actual_seconds"):
            vpg.pop(name)
    return {path: repr(answer) for path, answer in found.items()}


async def probe_all(world: World) -> int:
    """Every path x method x kind of identifier: foreign and absent answer the same."""
    before = await _seen(world)
    nobody = absent(world.other_ids)
    # A name is looked for among the caller's own: another tenant's is as good as any.
    paths = {path for _, path in routes_of(world.service) if "{" in path}
    paths = {path for path in paths if "vpg_name" not in path and "/provider/" not in path}
    probes = 0
    for path in sorted(paths):
        for method in _METHODS:
            for kind, foreign in sorted(world.other_ids.items()):
                if kind == "vpg_name":
                    continue
                left = await _probe(world, method, path, foreign)
                right = await _probe(world, method, path, nobody[kind])
                assert left == right, (method, path, kind)
                probes += 2
    assert await _seen(world) == before
    return probes


@pytest.mark.timeout(3600)
@pytest.mark.invariant("I9")
@pytest.mark.parametrize("how", ["whole", "without-scope", "without-rls"])
async def test_probes_across_tenants(cluster: Cluster, how: str) -> None:
    with cluster.database() as url:
        async with running_service(url) as service:
            world = await make_world(service)
            with _broken(how, url):
                assert await probe_all(world) >= PROBES_MIN


@pytest.mark.timeout(600)
async def test_without_both_walls_the_probes_see_the_leak(cluster: Cluster) -> None:
    with cluster.database() as url:
        async with running_service(url) as service:
            world = await make_world(service)
            switch_rls_off(url)
            with scope_removed(), pytest.raises(AssertionError):
                await probe_all(world)
