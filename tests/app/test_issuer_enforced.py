"""An issuer that is enforced, the one local account that is left, and what is kept of an issuer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx2
import pyotp
import pytest
from sqlalchemy import create_engine, text

from app.users.breakglass import TenantMissing, reset_break_glass
from tests.app.issuing import Acme, acme, refusal
from tests.app.test_users import PASSWORD, accept
from tests.servers.signing_issuer import CLIENT_ID, CLIENT_SECRET

__all__ = ["acme"]
pytestmark = pytest.mark.anyio


async def _break_glass(acme: Acme) -> tuple[str, str]:
    """(id, secret of the codes) of a local administrator."""
    wanted = {"name": "glass", "display_name": "Glass", "role": "administrator"}
    invited = (await acme.administrator.post("/v1/users", wanted)).json()
    accepted = await accept(acme.service, invited["invitation"])
    return invited["id"], accepted.json()["code_secret"]


async def _log_in(acme: Acme, name: str, secret: str) -> httpx2.Response:
    acme.clock.at += timedelta(seconds=31)
    code = pyotp.TOTP(secret).at(acme.clock.at)
    body = {"tenant": acme.tenant, "name": name, "password": PASSWORD, "code": code}
    return await acme.service.nobody.post("/v1/login", body)


async def test_an_issuer_is_enforced_by_who_came_through_it_as_it_is(acme: Acme) -> None:
    glass, secret = await _break_glass(acme)
    body = {"break_glass_user_id": glass}
    untested = await acme.administrator.post("/v1/issuer:enforce", body)
    assert (untested.status_code, untested.json()["code"]) == (409, "issuer_not_tested")
    local = acme.service.caller((await _log_in(acme, "glass", secret)).json()["token"])
    assert (await local.post("/v1/issuer:enforce", body)).json()["code"] == "issuer_not_tested"
    session = await acme.enter_command("one")
    assert (await acme.configure(groups_claim="roles")).status_code == 200
    assert (await session.get("/v1/self")).status_code == 401, "who came before comes again"
    assert (await acme.configure(groups_claim="groups")).status_code == 200
    session = await acme.enter_command("two")
    for wrong in ((await session.get("/v1/self")).json()["actor"], "usr_x"):
        refused = await session.post("/v1/issuer:enforce", {"break_glass_user_id": wrong})
        assert refused.status_code in (404, 409), wrong
    enforced = await session.post("/v1/issuer:enforce", body)
    assert enforced.json()["is_enforced"] is True, enforced.text
    assert (await session.get("/v1/self")).status_code == 200


async def test_enforced_only_one_local_account_is_left(acme: Acme) -> None:
    glass, secret = await _break_glass(acme)
    wanted = {"name": "ben", "display_name": "Ben", "role": "administrator"}
    invited = (await acme.administrator.post("/v1/users", wanted)).json()
    code = (await accept(acme.service, invited["invitation"])).json()["code_secret"]
    ben = acme.service.caller((await _log_in(acme, "ben", code)).json()["token"])
    session = await acme.enter_command()
    enforced = await session.post("/v1/issuer:enforce", {"break_glass_user_id": glass})
    assert enforced.status_code == 200
    assert (await ben.get("/v1/self")).status_code == 401
    refused, wrong = await _log_in(acme, "ben", code), await _log_in(acme, "nobody", code)
    assert refusal(refused) == refusal(wrong)
    assert (await _log_in(acme, "glass", secret)).status_code == 200
    kept = await acme.administrator.post(f"/v1/users/{glass}:disable")
    assert (kept.status_code, kept.json()["code"]) == (409, "in_use")
    fewer = await acme.administrator.call(
        "PUT", f"/v1/users/{glass}/grants", json={"grants": []}, headers={"if-match": "*"}
    )
    assert fewer.json()["code"] == "in_use"
    other = await acme.configure(client_id="another")
    assert (other.status_code, other.json()["code"]) == (409, "illegal_transition")
    acme.wanted["client_id"] = CLIENT_ID
    gone = await acme.administrator.call("DELETE", "/v1/issuer", headers={"if-match": "*"})
    assert gone.json()["code"] == "illegal_transition"
    for _ in range(2):
        assert (await acme.administrator.post("/v1/issuer:relax")).json()["is_enforced"] is False
    assert (await _log_in(acme, "ben", code)).status_code == 200
    assert (await session.get("/v1/self")).status_code == 200
    gone = await acme.administrator.call("DELETE", "/v1/issuer", headers={"if-match": "*"})
    assert gone.status_code == 204
    assert (await session.get("/v1/self")).status_code == 401
    audit = (await acme.administrator.get("/v1/audit", params={"limit": 200})).json()["items"]
    acts = [entry["action"] for entry in audit if entry["action"].startswith("issuer.")]
    assert acts == ["issuer.configured", "issuer.enforced", "issuer.relaxed", "issuer.deleted"]


async def test_without_the_check_of_enforcement_a_local_account_comes_in(
    acme: Acme, monkeypatch: pytest.MonkeyPatch
) -> None:
    glass, _ = await _break_glass(acme)
    wanted = {"name": "ben", "display_name": "Ben", "role": "viewer"}
    invited = (await acme.administrator.post("/v1/users", wanted)).json()
    code = (await accept(acme.service, invited["invitation"])).json()["code_secret"]
    session = await acme.enter_command()
    await session.post("/v1/issuer:enforce", {"break_glass_user_id": glass})
    assert (await _log_in(acme, "ben", code)).status_code == 401
    engine = create_engine(acme.service.url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE issuers SET enforced_at = NULL"))
    engine.dispose()
    assert (await _log_in(acme, "ben", code)).status_code == 200


async def test_a_break_glass_administrator_is_made_on_the_server(acme: Acme) -> None:
    glass, secret = await _break_glass(acme)
    session = await acme.enter_command()
    await session.post("/v1/issuer:enforce", {"break_glass_user_id": glass})
    tools = acme.service.tools
    with pytest.raises(TenantMissing):
        await reset_break_glass(
            tools.database, tools.sealer, acme.clock, "ten_01hq3v5k8m9n2p4r6s7t8w9x0z"
        )
    for _ in range(2):
        made = await reset_break_glass(tools.database, tools.sealer, acme.clock, acme.tenant)
        assert made.name == "break-glass"
        code = (await accept(acme.service, made.invitation)).json()["code_secret"]
        entered = await _log_in(acme, made.name, code)
        assert entered.status_code == 200
        inside = acme.service.caller(entered.json()["token"])
        issuer = (await inside.get("/v1/issuer")).json()
        assert issuer["break_glass_user_id"] == made.user_id
    assert (await _log_in(acme, "glass", secret)).status_code == 401
    assert (await inside.get("/v1/audit:verify")).json()["is_intact"] is True


async def test_what_needs_a_fresh_proof_needs_a_fresh_login(acme: Acme) -> None:
    export = {
        "tenant_name": (await acme.administrator.get("/v1/tenant")).json()["name"],
        "reason": "a test",
        "public_key": "CSotfFhqMTZCjFNN0pbfQWkbYQ8VmiMd5bdZ9oUxrVg=",
    }
    session = await acme.enter_command("one")
    assert (await session.post("/v1/recovery-key:export", export)).status_code == 200
    acme.clock.at += timedelta(minutes=6)
    stale = await session.post("/v1/recovery-key:export", export)
    assert (stale.status_code, stale.json()["code"]) == (403, "step_up_required")
    acme.clock.at -= timedelta(minutes=6)
    acme.issuer.claims = {"auth_time": None}
    silent = await acme.enter_command("two")
    answer = await silent.post("/v1/recovery-key:export", export)
    assert answer.json()["code"] == "step_up_required"


async def test_the_client_s_secret_is_sealed_and_kept(acme: Acme) -> None:
    engine = create_engine(acme.service.url)
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT i::text FROM issuers i")).scalar_one()
    engine.dispose()
    assert CLIENT_SECRET not in kept
    assert CLIENT_SECRET.encode().hex() not in kept
    for path in ("/v1/issuer", "/v1/events", "/v1/audit"):
        assert CLIENT_SECRET not in (await acme.administrator.get(path)).text
    acme.wanted.pop("client_secret")
    changed = await acme.configure(groups_claim="roles")
    assert changed.json()["groups_claim"] == "roles"
    assert (await acme.configure(groups_claim="groups")).status_code == 200
    assert (await acme.enter()).status_code == 200


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"url": "https://u:p@login.example.com"}, 422),
        ({"url": "https://login.example.com?x=1"}, 422),
        ({"url": "ftp://login.example.com"}, 422),
        ({"mappings": [{"group": "x", "role": "king"}]}, 422),
        ({"mappings": [{"group": "x", "role": "viewer", "scope": "site_x"}]}, 404),
        ({"client_secret": None, "url": "https://login.example.com"}, 200),
        ({"scopes": ["a b"]}, 422),
    ],
)
async def test_settings_that_make_no_sense(
    acme: Acme, changed: dict[str, Any], status: int
) -> None:
    assert (await acme.configure(**changed)).status_code == status
