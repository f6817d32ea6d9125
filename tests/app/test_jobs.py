"""Jobs: each done by one, a crash costs a lease, and what fails is tried again and told."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text

from app.database.roles import MIGRATE
from app.embedded.processes import installed
from app.embedded.supervisor import Program, Supervisor
from app.embedded.valkey import broker_url, valkey_program
from app.jobs.plan import PERIODS, RETRY_SECONDS_MAX, RETRY_SECONDS_MIN, JobKind, retry_seconds
from app.jobs.relay import BrokerAway, relay_jobs, sender
from app.jobs.service import (
    JobKey,
    claim_job,
    ensure_jobs,
    fail_job,
    finish_job,
    renew_job,
    take_due,
)
from app.jobs.steps import meter_usage
from app.kit.clock import SystemClock
from app.kit.ids import Kind, parse
from host_agent.wire.errors import HoldfastError
from infra.demo.processes import free_port
from tests.app.joining import join_host
from tests.app.protecting import machine, machine_ids, make_vpg, report
from tests.app.service import SECRET, Caller, Service
from tests.app.test_processes import asked
from workers.tasks.runner import run_job
from workers.tasks.steps import STEPS, StepTools

pytestmark = pytest.mark.anyio
_SECONDS_MAX = 90.0


def ask(service: Service, question: str, **values: Any) -> list[Any]:
    """As the owner of the tables."""
    engine = create_engine(service.url.set(username=MIGRATE))
    with engine.begin() as connection:
        done = connection.execute(text(question), values)
        rows = list(done.all()) if done.returns_rows else []
    engine.dispose()
    return rows


async def protected(service: Service, **plan: Any) -> Caller:
    """A tenant with a host, a machine and a group."""
    tenant = await service.make_tenant(plan=plan)
    host_id, _ = await join_host(tenant, "host")
    await report(service, tenant, host_id, machine("db", "vda"))
    await make_vpg(tenant, "group", (await machine_ids(tenant))["db"])
    return tenant


async def ensured(service: Service) -> list[JobKey]:
    """All jobs, told once."""
    async with service.tools.database.system() as session:
        await ensure_jobs(session)
        due = await take_due(session)
        await session.commit()
    return due


async def the_job(service: Service, kind: JobKind) -> JobKey:
    await ensured(service)
    row = ask(service, "SELECT tenant_id, id FROM jobs WHERE kind = :kind", kind=kind.value)[0]
    return JobKey(row[0], row[1])


def tools_of(service: Service, folder: Path) -> StepTools:
    return StepTools(
        service.tools.database,
        SystemClock(),
        f"file://{folder}/store",
        folder / "keys.sock",
        service.tools.sealer,
    )


def test_waits_grow_to_a_limit() -> None:
    waits = [retry_seconds(number) for number in range(1, 40)]
    assert waits[0] == RETRY_SECONDS_MIN
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_SECONDS_MAX


async def test_each_tenant_and_each_group_has_each_of_its_jobs_once(service: Service) -> None:
    await protected(service)
    await service.make_tenant()
    due = await ensured(service)
    of_groups = sum(kind.is_of_vpg for kind in PERIODS)
    assert len(due) == of_groups + 2 * (len(PERIODS) - of_groups)
    assert await ensured(service) == []
    assert len(ask(service, "SELECT 1 FROM jobs")) == len(due)


async def test_a_message_that_was_lost_is_sent_again(service: Service) -> None:
    await service.make_tenant()
    first = await ensured(service)
    ask(service, "UPDATE jobs SET sent_at = sent_at - interval '31 seconds'")
    assert set(await ensured(service)) == set(first)


async def test_of_many_who_want_it_one_has_it(service: Service) -> None:
    await service.make_tenant()
    key = await the_job(service, JobKind.METER_USAGE)

    async def take() -> bool:
        async with service.tools.database.system() as session:
            claim = await claim_job(session, key)
            await session.commit()
            return claim is not None

    assert sum(await asyncio.gather(*(take() for _ in range(8)))) == 1


async def test_who_lost_its_lease_changes_nothing_any_more(service: Service) -> None:
    await service.make_tenant()
    key = await the_job(service, JobKind.METER_USAGE)
    async with service.tools.database.system() as session:
        early = await claim_job(session, key)
        await session.commit()
    ask(service, "UPDATE jobs SET lease_until = lease_until - interval '1 day'")
    async with service.tools.database.system() as session:
        late = await claim_job(session, key)
        await session.commit()
    assert early is not None
    assert late is not None
    assert late.fence > early.fence
    async with service.tools.database.system() as session:
        assert not await renew_job(session, early)
        assert not await finish_job(session, early)
        assert not await fail_job(session, early, "late")
        assert await finish_job(session, late)
        await session.commit()
    row = ask(service, "SELECT due_at, failures FROM jobs WHERE id = :id", id=key.id)[0]
    period = timedelta(seconds=PERIODS[JobKind.METER_USAGE].every)
    assert row.due_at - datetime.now(UTC) > period * 0.9
    assert row.failures == 0


async def test_what_fails_again_and_again_is_an_alert_until_it_works(
    service: Service, tmp_path: Path
) -> None:
    tenant = await service.make_tenant()
    key = await the_job(service, JobKind.METER_USAGE)
    tools = tools_of(service, tmp_path)

    async def bad(_tools: StepTools, _claim: object) -> None:
        raise HoldfastError("The store is away.")

    async def run(step: Any) -> str:
        ask(service, "UPDATE jobs SET due_at = now() - interval '1 second'")
        return await run_job(tools, key, {JobKind.METER_USAGE: step})

    for _ in range(3):
        assert (await tenant.get("/v1/alerts")).json()["items"] == []
        assert await run(bad) == "failed"
    alert = (await tenant.get("/v1/alerts")).json()["items"][0]
    assert alert["code"] == "job.meter_usage"
    assert alert["message"] == "The store is away."
    assert await run(STEPS[JobKind.METER_USAGE]) == "done"
    alerts = (await tenant.get("/v1/alerts")).json()["items"]
    assert [one for one in alerts if one["cleared_at"] is None] == []


async def test_usage_is_the_most_of_each_hour(service: Service, tmp_path: Path) -> None:
    await protected(service)
    key = await the_job(service, JobKind.METER_USAGE)
    assert await run_job(tools_of(service, tmp_path), key, STEPS) == "done"
    row = ask(service, "SELECT vpgs, machines, protected_bytes FROM usage_hours")[0]
    assert tuple(row) == (1, 1, 1 << 30)
    ask(service, "DELETE FROM vpg_disks")
    ask(service, "UPDATE jobs SET due_at = now() - interval '1 second'")
    assert await run_job(tools_of(service, tmp_path), key, STEPS) == "done"
    assert ask(service, "SELECT machines FROM usage_hours") == [(1,)]


async def test_usage_is_read_by_its_tenant_and_summed_for_the_provider(service: Service) -> None:
    tenant, other = await protected(service), await service.make_tenant()
    own = (await tenant.get("/v1/tenant")).json()["id"]
    hour = datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(3):
        async with service.tools.database.tenant(parse(Kind.TENANT, own)) as session:
            await meter_usage(session, hour + timedelta(hours=number))
            await session.commit()
    span = {"since": "2026-03-01T00:00:00Z", "until": "2026-03-01T02:00:00Z"}
    found = (await tenant.get("/v1/usage", params=span)).json()["items"]
    assert [one["machines"] for one in found] == [1, 1]
    assert (await other.get("/v1/usage", params=span)).json() == {"items": []}
    (sums,) = (await service.provider.get("/v1/provider/usage", params=span)).json()["items"]
    size = found[0]["protected_bytes"]
    assert size > 0
    assert sums == {
        "tenant_id": own,
        "hours": 2,
        "machine_hours": 2,
        "protected_byte_hours": 2 * size,
        "protected_bytes_max": size,
        "retained_byte_hours": 0,
        "retained_bytes_max": 0,
    }
    for wrong in ({"since": span["until"], "until": span["since"]}, {"since": "2020-01-01T00:00Z"}):
        refused = await tenant.get("/v1/usage", params=wrong)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


async def test_old_events_go_and_leave_no_gap(service: Service, tmp_path: Path) -> None:
    tenant = await service.make_tenant()
    for number in range(4):
        await tenant.post("/v1/sites", {"name": f"s{number}", "territory": "CH"})
    ask(service, "UPDATE events SET at = at - interval '31 days' WHERE place = 2")
    key = await the_job(service, JobKind.TIDY_RECORDS)
    assert await run_job(tools_of(service, tmp_path), key, STEPS) == "done"
    places = [row[0] for row in ask(service, "SELECT place FROM events ORDER BY place")]
    assert places[0] == 3
    assert places == list(range(3, 3 + len(places)))
    gone = await tenant.get("/v1/events", params={"after": 1})
    assert gone.json()["code"] == "cursor_too_old"


@asynccontextmanager
async def broker() -> AsyncIterator[tuple[Supervisor, Path]]:
    """A real Valkey, in a short path."""
    with tempfile.TemporaryDirectory(prefix="jobs-") as made:
        supervisor = Supervisor(Path(made) / "logs", lambda _: None)
        try:
            await supervisor.start([valkey_program(Path(made) / "v")])
            yield supervisor, Path(made)
        finally:
            await supervisor.stop()


async def test_a_worker_does_what_is_due_and_a_killed_one_costs_a_lease(service: Service) -> None:
    await service.make_tenant()
    async with broker() as (supervisor, folder):
        secret = folder / "secret"
        secret.write_bytes(SECRET)
        told = {
            "HOLDFAST_DATABASE_URL": service.url.render_as_string(hide_password=False),
            "HOLDFAST_SECRET_FILE": str(secret),
            "HOLDFAST_BROKER_URL": broker_url(folder / "v"),
            "HOLDFAST_STORE_URL": f"file://{folder}/store",
            "HOLDFAST_KEYS_SOCKET": str(folder / "keys.sock"),
            "HOLDFAST_WORKER_PROCESSES": "1",
            "HOLDFAST_WORKER_HEALTH_LISTEN": f"127.0.0.1:{(port := free_port())}",
        }
        relay = asyncio.create_task(
            relay_jobs(service.tools.database, sender(broker_url(folder / "v")), 0.1)
        )
        try:
            await supervisor.start([Program("worker", installed("worker"), told, _at_once)])
            await _until_done(service, 2)
            assert await asyncio.to_thread(asked, port, "/ready") == (200, '{"ready": true}')
            _, figures = await asyncio.to_thread(asked, port, "/metrics")
            assert "holdfast_worker_jobs_total" in figures
            worker = supervisor.children[-1]
            assert worker.process is not None
            worker.process.kill()
            ask(service, "UPDATE jobs SET due_at = now(), done_at = NULL, sent_at = NULL")
            await _until_done(service, 2)
            assert worker.restarts == 1
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)


async def _at_once() -> bool:
    return True


async def _until_done(service: Service, count: int) -> None:
    async with asyncio.timeout(_SECONDS_MAX):
        question = "SELECT 1 FROM jobs WHERE done_at IS NOT NULL"
        while len(await asyncio.to_thread(ask, service, question)) < count:
            await asyncio.sleep(0.2)


async def test_a_broker_that_is_away_loses_nothing(service: Service, tmp_path: Path) -> None:
    await service.make_tenant()
    send = sender(f"redis+socket://{tmp_path}/none.sock")
    with pytest.raises(BrokerAway):
        await send([JobKey(UUID(int=1), UUID(int=2))])
    relay = asyncio.create_task(relay_jobs(service.tools.database, send, 0.05))
    await asyncio.sleep(1.0)
    assert not relay.done()
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    assert len(await ensured(service)) == sum(not kind.is_of_vpg for kind in PERIODS)
