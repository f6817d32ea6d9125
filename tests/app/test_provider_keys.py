"""An Idempotency-Key of the provider's staff has at most one effect, whatever breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import create_engine, text

from app.http.contract import describe
from app.http.idempotency import MUTATING
from app.http.routing import ProviderRoute
from app.kit.problems import Problem
from app.sites.schemas import SiteInput
from tests.app.placing import id_of, made, policy
from tests.app.service import Service, running_service
from tests.app.test_isolation import BODIES, make_world, routes_of
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
SITE = {"name": "north", "territory": "CH"}
SITES, TENANTS = "/v1/provider/sites", "/v1/provider/tenants"
NODES, STORES = "/v1/provider/data-nodes", "/v1/provider/journal-stores"
#: Mutating routes without the header: the credential is used up by the request.
UNKEYED = {"POST /v1/data-node-enrolments"}
#: What the walk over all routes does not bring about: these nodes never joined, and the policy
#: that it applies allows no pool.
REFUSED = {
    f"POST-{NODES}/{{data_node_id}}:drain illegal_transition",
    f"POST-{NODES}/{{data_node_id}}:undrain illegal_transition",
    "POST-/v1/provider/placements not_granted",
}


class SetClock:
    """It is what it is set to."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 30, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


def unkeyed(document: dict[str, Any]) -> Iterator[str]:
    """Mutating operations that do not say that they take a key."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            names = [one["name"] for one in operation.get("parameters", ())]
            if method.upper() in MUTATING and "Idempotency-Key" not in names:
                yield f"{method.upper()} {path}"


def records(service: Service) -> list[Any]:
    engine = create_engine(service.url)
    with engine.connect() as connection:
        query = text("SELECT key, status, body FROM provider_idempotency_records ORDER BY key")
        found = [tuple(row) for row in connection.execute(query)]
    engine.dispose()
    return found


async def create(service: Service, key: str, **wanted: Any) -> httpx2.Response:
    return await service.provider.post(SITES, SITE | wanted, headers={"idempotency-key": key})


async def names(service: Service) -> list[str]:
    return [one["name"] for one in (await service.provider.get(SITES)).json()["items"]]


async def test_every_mutating_route_says_that_it_takes_a_key(service: Service) -> None:
    assert set(unkeyed(service.app.openapi())) == UNKEYED


def test_a_route_without_a_key_is_seen() -> None:
    """The control: of the provider's, and of nobody's."""

    class Unkeyed(ProviderRoute):
        takes_key = False

    def take(wanted: SiteInput) -> None:
        """Nothing."""

    for kind, found in ((Unkeyed, ["POST /open"]), (ProviderRoute, [])):
        router = APIRouter(tags=["provider"], route_class=kind)
        router.add_api_route("/open", take, methods=["POST"])
        app = FastAPI(generate_unique_id_function=lambda route: route.name)
        app.include_router(router)
        describe(app, [router])
        assert list(unkeyed(app.openapi())) == found
    app = FastAPI()
    app.add_api_route("/open", lambda: None, methods=["PUT"])
    assert list(unkeyed(app.openapi())) == ["PUT /open"]


async def test_a_repeat_has_one_effect_and_the_same_answer(service: Service) -> None:
    first, again = await create(service, "once"), await create(service, "once")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert await names(service) == ["north"]
    acts = (await service.provider.get("/v1/provider/audit")).json()["items"]
    assert [act["action"] for act in acts] == ["sites.created"]
    other = await create(service, "once", name="south")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    unkeyed_again = await service.provider.post(SITES, SITE)
    assert unkeyed_again.json()["code"] == "name_taken", "the control: without a key"


async def objects(service: Service) -> dict[str, str]:
    """An object of each kind that the provider's routes name."""
    world = await make_world(service)
    tenant_id = await id_of(world.own)
    nodes = [
        await made(service.provider, NODES, {"name": name, "territory": "CH", "doors": ["n:1"]})
        for name in ("one", "two")
    ]
    store = {"name": "own", "territory": "CH", "url": "s3://own/own", "wall": "static"}
    plan = await made(service.provider, f"{TENANTS}/{tenant_id}/policy:plan", policy())
    query = {"tenant_id": tenant_id}
    placed = (await service.provider.get("/v1/provider/placements", params=query)).json()["items"]
    return {
        "tenant_id": tenant_id,
        "data_node_id": nodes[0]["id"],
        "journal_store_id": (await made(service.provider, STORES, store))["id"],
        "placement_id": placed[0]["id"],
        "host_id": placed[0]["host_id"],
        "pool_id": placed[0]["pool_id"],
        "site_id": (await service.provider.get(SITES)).json()["items"][0]["id"],
        "plan_id": plan["id"],
    }


async def test_each_mutating_route_answers_a_repeat_by_its_record(service: Service) -> None:
    """What was refused is refused anew; all else is answered, not done again."""
    ids, refused = await objects(service), set()
    # What changes the tenant makes the plan stale: it is applied first.
    for method, path in sorted(routes_of(service), key=lambda one: not one[1].endswith(":apply")):
        if method not in MUTATING or not path.startswith("/v1/provider/"):
            continue
        body = BODIES[f"{method} {path}"]
        key = f"{method}-{path}"
        options: dict[str, Any] = {"headers": {"if-match": "*", "idempotency-key": key}}
        if body is not None:
            options["json"] = body | {name: ids[name] for name in body.keys() & ids.keys()}
        first, again = [
            await service.provider.call(method, path.format(**ids), **options) for _ in range(2)
        ]
        if not first.is_success:
            assert first.json()["code"] == again.json()["code"], key
            refused.add(f"{key} {first.json()['code']}")
        elif "token" in first.json():
            assert again.json()["code"] == "secret_already_shown", key
        else:
            assert again.headers["idempotent-replayed"] == "true", key
            assert (again.status_code, again.json()) == (first.status_code, first.json()), key
    assert refused == REFUSED


async def test_thirty_two_at_once_have_one_effect(service: Service) -> None:
    path, wanted = NODES, {"name": "n", "territory": "CH", "doors": ["d:1"]}

    async def ask(where: str, body: dict[str, Any]) -> httpx2.Response:
        return await service.provider.post(where, body, headers={"idempotency-key": where})

    for where, body in ((SITES, SITE), (path, wanted)):
        answers = await asyncio.gather(*(ask(where, body) for _ in range(32)))
        assert {a.status_code for a in answers} <= {201, 409, 503}
        codes = {a.json()["code"] for a in answers if a.status_code != 201}
        waiting = {"request_in_progress", "database_unavailable"}
        assert codes <= waiting | {"secret_already_shown"}
        made = [a.json() for a in answers if a.status_code == 201]
        assert len({one["id"] for one in made}) == 1
        assert len((await service.provider.get(where)).json()["items"]) == 1
        last = await ask(where, body)
        assert last.json().get("code", "") in ("", "secret_already_shown")
    acts = (await service.provider.get("/v1/provider/audit")).json()["items"]
    assert [act["action"] for act in acts].count("sites.created") == 1


async def test_a_secret_is_not_repeated(service: Service) -> None:
    wanted, headers = {"name": "once", "plan": {}}, {"idempotency-key": "k"}
    made = await service.provider.post(TENANTS, wanted, headers=headers)
    again = await service.provider.post(TENANTS, wanted, headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "secret_already_shown")
    assert made.json()["id"] in again.text
    assert made.json()["token"] not in again.text
    assert records(service) == [("k", 201, None)]
    assert len((await service.provider.get(TENANTS)).json()["items"]) == 1


async def test_a_refused_request_leaves_its_key_free(service: Service) -> None:
    await create(service, "first")
    taken = await create(service, "again")
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    wrong = await create(service, "again", territory="")
    assert wrong.json()["code"] == "invalid_fields"
    assert [key for key, *_ in records(service)] == ["first"]
    assert (await create(service, "again", name="free")).status_code == 201


@pytest.mark.parametrize("broken", [Problem("database_unavailable"), KeyError("hush")])
async def test_what_broke_off_after_its_effect_is_not_done_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    """The site is there, its answer was never made: a repeat is told so, at once and later."""
    clock = SetClock()

    async def break_off(*_: Any) -> None:
        raise broken

    with cluster.database() as url:
        async with running_service(url, clock) as service:
            with monkeypatch.context() as patched:
                patched.setattr("app.pools.service.note_act", break_off)
                assert (await create(service, "once")).status_code >= 500
            assert await names(service) == ["north"]
            assert (await create(service, "once")).json()["code"] == "request_in_progress"
            clock.at += timedelta(minutes=2)
            late = await create(service, "once")
            assert (late.status_code, late.json()["code"]) == (409, "outcome_unknown")
            assert late.json()["retryable"] is False
            other = await create(service, "once", name="south")
            assert other.json()["code"] == "idempotency_key_reused"
            assert await names(service) == ["north"]
            clock.at += timedelta(days=3)
            assert (await create(service, "once", name="south")).status_code == 201
            assert [row[:2] for row in records(service)] == [("once", 201)]


async def test_one_of_the_staff_does_not_meet_another_s_keys(service: Service) -> None:
    await create(service, "once")
    engine = create_engine(service.url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE provider_idempotency_records SET principal_id = gen_random_uuid()")
        )
    engine.dispose()
    assert (await create(service, "once")).json()["code"] == "name_taken"
