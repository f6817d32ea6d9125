"""People: invited, known by password and code, locked out by guessing, in sessions that end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyotp
import pytest
from httpx2 import Response

from tests.app.service import Caller, Service, running_service
from tests.servers.postgres import Cluster

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at


@dataclass
class Person:
    """Somebody who accepted an invitation."""

    service: Service
    clock: SetClock
    administrator: Caller
    id: str
    tenant: str
    secret: str

    def code(self) -> str:
        """What the authenticator shows now."""
        return pyotp.TOTP(self.secret).at(self.clock.at)

    async def log_in(self, **changed: Any) -> Response:
        """Try with the right words, or with some of them changed."""
        words = {"tenant": self.tenant, "name": "ada", "password": PASSWORD, "code": self.code()}
        return await self.service.nobody.post("/v1/login", {**words, **changed})

    async def enter(self) -> Caller:
        """A session, with the next code."""
        self.clock.at += timedelta(seconds=30)
        answer = await self.log_in()
        assert answer.status_code == 200, answer.text
        return self.service.caller(answer.json()["token"])


async def invite(administrator: Caller, role: str = "operator") -> dict[str, Any]:
    wanted = {"name": "ada", "display_name": "Ada Lovelace", "role": role}
    answer = await administrator.post("/v1/users", wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def accept(service: Service, invitation: str, password: str = PASSWORD) -> Response:
    caller = service.caller(invitation)
    return await caller.post("/v1/invitations:accept", {"password": password})


@pytest.fixture
async def ada(cluster: Cluster) -> AsyncIterator[Person]:
    clock = SetClock()
    with cluster.database() as url:
        async with running_service(url, clock) as service:
            administrator = await service.make_tenant()
            tenant = (await administrator.get("/v1/tenant")).json()["id"]
            invited = await invite(administrator)
            accepted = await accept(service, invited["invitation"])
            assert accepted.status_code == 200, accepted.text
            secret = accepted.json()["code_secret"]
            yield Person(service, clock, administrator, invited["id"], tenant, secret)


async def test_a_person_logs_in_works_and_logs_out(ada: Person) -> None:
    session = await ada.enter()
    assert (await session.get("/v1/self")).json()["actor"] == ada.id
    made = await session.post("/v1/sites", {"name": "here", "territory": "CH"})
    assert made.status_code == 201
    assert (await session.post("/v1/users", {})).status_code == 403
    assert (await session.post("/v1/self:log-out")).status_code == 204
    assert (await session.get("/v1/self")).status_code == 401
    actors = {
        entry["actor"] for entry in (await ada.administrator.get("/v1/audit")).json()["items"]
    }
    assert ada.id in actors


async def test_every_wrong_login_has_the_same_answer(ada: Person) -> None:
    other = await ada.service.make_tenant()
    foreign = (await other.get("/v1/tenant")).json()["id"]
    wrong = [
        {"password": PASSWORD + "x"},
        {"code": "000000"},
        {"code": ""},
        {"name": "nobody"},
        {"tenant": foreign},
        {"tenant": "ten_x"},
    ]
    seen = set()
    for changed in wrong:
        answer = await ada.log_in(**changed)
        body = answer.json()
        body.pop("request_id")
        seen.add((answer.status_code, repr(body)))
    assert len(seen) == 1
    assert seen.pop()[0] == 401


async def test_a_code_works_once(ada: Person) -> None:
    ada.clock.at += timedelta(seconds=30)
    assert (await ada.log_in()).status_code == 200
    assert (await ada.log_in()).status_code == 401
    before = pyotp.TOTP(ada.secret).at(ada.clock.at - timedelta(seconds=30))
    assert (await ada.log_in(code=before)).status_code == 401


async def test_guessing_locks_the_account_for_a_while_that_grows(ada: Person) -> None:
    for _ in range(7):
        assert (await ada.log_in(password="a wrong password")).status_code == 401
    ada.clock.at += timedelta(seconds=1)
    assert (await ada.log_in()).status_code == 401, "locked for 2 s after the seventh"
    ada.clock.at += timedelta(seconds=60)
    assert (await ada.log_in()).status_code == 200
    denied = [
        entry
        for entry in (await ada.administrator.get("/v1/audit")).json()["items"]
        if entry["outcome"] == "denied"
    ]
    assert len(denied) == 8


async def test_a_session_ends_when_idle_and_for_good_after_a_day_s_work(ada: Person) -> None:
    session = await ada.enter()
    for _ in range(25):
        ada.clock.at += timedelta(minutes=28)
        assert (await session.get("/v1/self")).status_code == 200
    ada.clock.at += timedelta(minutes=28)
    assert (await session.get("/v1/self")).status_code == 401, "12 h are over"
    session = await ada.enter()
    ada.clock.at += timedelta(minutes=31)
    assert (await session.get("/v1/self")).status_code == 401


async def test_disabling_and_resetting_end_every_session(ada: Person) -> None:
    session = await ada.enter()
    reset = await ada.administrator.post(f"/v1/users/{ada.id}:reset")
    assert (await session.get("/v1/self")).status_code == 401
    assert (await ada.log_in()).status_code == 401
    accepted = await accept(ada.service, reset.json()["invitation"], "another long one")
    ada.secret = accepted.json()["code_secret"]
    ada.clock.at += timedelta(seconds=30)
    answer = await ada.log_in(password="another long one")
    session = ada.service.caller(answer.json()["token"])
    assert (await session.get("/v1/self")).status_code == 200
    await ada.administrator.post(f"/v1/users/{ada.id}:disable")
    assert (await session.get("/v1/self")).status_code == 401
    ada.clock.at += timedelta(seconds=30)
    assert (await ada.log_in(password="another long one")).status_code == 401


async def test_an_invitation_works_once_and_for_three_days(ada: Person) -> None:
    tenant = await ada.service.make_tenant()
    invited = await invite(tenant)
    short = await accept(ada.service, invited["invitation"], "short")
    assert short.status_code == 422
    ada.clock.at += timedelta(hours=71)
    assert (await accept(ada.service, invited["invitation"])).status_code == 200
    assert (await accept(ada.service, invited["invitation"])).status_code == 401
    again = (await tenant.post(f"/v1/users/{invited['id']}:reset")).json()["invitation"]
    ada.clock.at += timedelta(hours=73)
    assert (await accept(ada.service, again)).status_code == 401


async def test_a_token_of_one_kind_opens_no_other_door(ada: Person) -> None:
    tenant = await ada.service.make_tenant()
    invitation = (await invite(tenant))["invitation"]
    session = await ada.enter()
    wrong = [invitation, (session.token or "").replace("hfs_", "hf_")]
    wrong += [(tenant.token or "").replace("hf_", "hfs_"), invitation.replace("hfi_", "hfs_")]
    for token in wrong:
        assert (await ada.service.caller(token).get("/v1/self")).status_code == 401
    assert (await accept(ada.service, session.token or "")).status_code == 401


async def test_the_last_administrator_stays(ada: Person) -> None:
    tenant = await ada.service.make_tenant()
    invited = await invite(tenant, "administrator")
    await accept(ada.service, invited["invitation"])
    key = (await tenant.get("/v1/api-keys")).json()["items"][0]["id"]
    assert (await tenant.post(f"/v1/users/{invited['id']}:disable")).status_code == 200
    last = await tenant.post(f"/v1/api-keys/{key}:revoke")
    assert last.json()["code"] == "last_administrator"


async def test_neither_password_nor_code_is_kept_in_the_clear(ada: Person) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(ada.service.url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT u::text FROM users u")).scalars().all()
    engine.dispose()
    assert len(rows) == 1
    assert PASSWORD not in rows[0]
    assert ada.secret not in rows[0]
    assert ada.secret.encode().hex() not in rows[0]
