"""Errors, limits, keys, tenants: what the service does whatever the resource."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import ProgrammingError

from app.database import sessions
from app.database.migrate import downgrade, upgrade
from app.database.roles import APP
from app.kit.problems import CATALOGUE, MEDIA_TYPE
from tests.app.service import Service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio


async def test_every_error_is_a_problem_of_the_catalogue(service: Service) -> None:
    tenant = await service.make_tenant()
    asked = [
        await tenant.get("/nowhere"),
        await tenant.call("PATCH", "/v1/sites"),
        await tenant.call("POST", "/v1/sites", content=b"{", headers={"content-type": "text/json"}),
        await tenant.call("POST", "/v1/sites", content=b"\xff" * 9),
        await tenant.call("POST", "/v1/sites", content=b" " * (2 << 20)),
        await tenant.get("/v1/sites", params={"limit": 0}),
        await tenant.get("/v1/sites", params={"sort": "password"}),
        await tenant.get("/v1/sites/%00"),
        await tenant.post("/v1/sites", {}, headers={"idempotency-key": "é".encode()}),
    ]
    for answer in asked:
        problem = answer.json()
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert answer.status_code == CATALOGUE[problem["code"]].status < 500
        assert problem["request_id"] == answer.headers["request-id"]
        assert problem["detail"]
    assert asked[4].json()["code"] == "body_too_large"
    listed = (await service.nobody.get("/v1/problems")).json()
    assert {kind["code"] for kind in listed} == set(CATALOGUE)


async def test_a_defect_shows_its_request_s_id_and_nothing_else(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await service.make_tenant()
    monkeypatch.setattr(
        "app.sites.endpoints.list_page", lambda *_: (_ for _ in ()).throw(KeyError("hush"))
    )
    answer = await tenant.get("/v1/sites")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hush" not in answer.text
    assert "Traceback" not in answer.text


async def test_a_database_that_is_gone_is_said_to_be_gone(cluster: Cluster) -> None:
    from tests.app.service import running_service

    with cluster.database() as url:
        async with running_service(url) as service:
            tenant = await service.make_tenant()
            await service.tools.database.close()
            engine = create_engine(url)
            with engine.connect() as connection:
                connection.execute(text(f"ALTER ROLE {APP} NOLOGIN"))
                connection.commit()
                try:
                    answer = await tenant.get("/v1/sites")
                finally:
                    connection.execute(text(f"ALTER ROLE {APP} LOGIN"))
                    connection.commit()
            engine.dispose()
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert answer.headers["retry-after"] == "2"
            assert (await tenant.get("/v1/sites")).status_code == 200


@pytest.mark.parametrize("is_looked_at", [True, False])
async def test_a_connection_that_the_database_ended_is_replaced_before_it_is_used(
    service: Service, is_looked_at: bool
) -> None:
    tenant = await service.make_tenant()
    if not is_looked_at:
        pool = service.tools.database._app.sync_engine
        event.remove(pool, "checkout", sessions._refuse_dead)
    engine = create_engine(service.url)
    with engine.connect() as connection:
        ended = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND usename = :role"
            ),
            {"role": APP},
        ).all()
    engine.dispose()
    assert ended
    answer = await tenant.get("/v1/sites")
    assert answer.status_code == (200 if is_looked_at else 503)


async def test_a_secret_is_shown_once(service: Service) -> None:
    tenant = await service.make_tenant()
    wanted, headers = {"name": "ci", "role": "viewer"}, {"idempotency-key": "k"}
    made = await tenant.post("/v1/api-keys", wanted, headers=headers)
    secret = made.json()["token"].rsplit("_", 1)[1]
    again = await tenant.post("/v1/api-keys", wanted, headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "secret_already_shown")
    assert made.json()["id"] in again.text
    for path in ("/v1/api-keys", "/v1/events", "/v1/audit", made.headers["location"]):
        assert secret not in (await tenant.get(path)).text
    engine = create_engine(service.url)
    with engine.connect() as connection:
        tables = connection.execute(text("SELECT tablename FROM pg_policies")).scalars().all()
        for table in set(tables):
            rows = connection.execute(text(f"SELECT t::text FROM {table} t")).scalars().all()
            assert all(secret not in row for row in rows)
    engine.dispose()


async def test_a_revoked_key_ends_at_once_and_the_last_one_stays(service: Service) -> None:
    tenant = await service.make_tenant()
    viewer = await service.make_caller(tenant, "viewer")
    keys = (await tenant.get("/v1/api-keys")).json()["items"]
    first = next(key for key in keys if key["grants"][0]["role"] == "administrator")
    other = next(key for key in keys if key["grants"][0]["role"] == "viewer")
    assert (await viewer.get("/v1/sites")).status_code == 200
    assert (await tenant.post(f"/v1/api-keys/{other['id']}:revoke")).status_code == 200
    assert (await viewer.get("/v1/sites")).status_code == 401
    last = await tenant.post(f"/v1/api-keys/{first['id']}:revoke")
    assert (last.status_code, last.json()["code"]) == (409, "last_administrator")


async def test_a_tampered_audit_log_does_not_verify(service: Service) -> None:
    tenant = await service.make_tenant()
    for number in range(3):
        await tenant.post("/v1/sites", {"name": f"{number}", "territory": "CH"})
    assert (await tenant.get("/v1/audit:verify")).json()["is_intact"] is True
    spoil = {
        "UPDATE audit_entries SET actor = 'nobody' WHERE place = 2": 2,
        "UPDATE audit_entries SET hash = previous_hash WHERE place = 4": 4,
        "DELETE FROM audit_entries WHERE place = 3": 3,
        "DELETE FROM audit_entries WHERE place = 4": 4,
    }
    for statement, place in spoil.items():
        engine = create_engine(service.url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TEMP TABLE kept AS SELECT * FROM audit_entries"))
            connection.execute(text(statement))
            connection.commit()
            verdict = (await tenant.get("/v1/audit:verify")).json()
            assert (verdict["is_intact"], verdict["first_bad_place"]) == (False, place), statement
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM audit_entries"))
            connection.execute(text("INSERT INTO audit_entries SELECT * FROM kept"))
        engine.dispose()
    assert (await tenant.get("/v1/audit:verify")).json()["is_intact"] is True


async def test_the_provider_sees_every_tenant_once_page_by_page(service: Service) -> None:
    made = {(await (await service.make_tenant()).get("/v1/tenant")).json()["id"] for _ in range(7)}
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = (await service.provider.get("/v1/provider/tenants", params=query)).json()
        seen += [one["id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        query = {"limit": 3, "cursor": page["next_cursor"]}
    assert set(seen) == made
    assert len(seen) == 7
    bad = await service.provider.get("/v1/provider/tenants", params={"cursor": "x"})
    assert bad.json()["code"] == "cursor_invalid"


async def test_a_tenant_s_name_is_taken_once(service: Service) -> None:
    await service.make_tenant("Acme")
    answer = await service.provider.post("/v1/provider/tenants", {"name": "Acme"})
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")


@pytest.mark.invariant("I9")
def test_the_database_s_wall_stands_for_every_table_and_verb(cluster: Cluster) -> None:
    with cluster.database() as url:
        superuser, engine = create_engine(url), create_engine(url.set(username=APP))
        with superuser.connect() as connection:
            walls = connection.execute(
                text(
                    "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class "
                    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
                )
            ).all()
        bare = {name for name, on, forced in walls if not (on and forced)}
        assert bare == {"alembic_version", "provider_keys"}
        verbs = ("SELECT * FROM {}", "DELETE FROM {}", "UPDATE {} SET tenant_id = tenant_id")
        for table in {name for name, *_ in walls}:
            for verb in verbs:
                with engine.connect() as connection, pytest.raises(ProgrammingError):
                    # No tenant is set: no table opens, whatever is asked of it.
                    connection.execute(text(verb.format(table)))
        superuser.dispose()
        engine.dispose()


def test_migrations_go_up_and_down_and_up_again(cluster: Cluster) -> None:
    with cluster.empty_database() as url:
        upgrade(url)
        downgrade(url, "base")
        upgrade(url)
        engine = create_engine(url)
        with engine.connect() as connection:
            tables = connection.execute(text("SELECT count(*) FROM pg_policies")).scalar_one()
        engine.dispose()
        assert tables >= 9
