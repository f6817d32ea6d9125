"""People who come in through their tenant's issuer, against one that says whatever a test wants."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from app.http.cookies import LOGIN_COOKIE, SESSION_COOKIE
from app.oidc.attempts import challenge_of
from app.oidc.documents import KEYS_SECONDS_MIN
from tests.app.issuing import STATE, VERIFIER, Acme, acme, handed, make_acme, refusal
from tests.app.service import PUBLIC_URL
from tests.app.test_users import PASSWORD
from tests.servers.signing_issuer import make_rsa_key

__all__ = ["acme"]
pytestmark = pytest.mark.anyio


async def test_a_browser_gets_a_session_in_a_cookie_that_scripts_cannot_read(acme: Acme) -> None:
    async with acme.service.browser() as browser:
        answer = await acme.come_back(browser, await acme.begin(browser))
        assert answer.status_code == 200, answer.text
        cookies = answer.headers.get_list("set-cookie")
        session = next(one for one in cookies if one.startswith(f"{SESSION_COOKIE}=hfs_"))
        attributes = {part.strip().partition("=")[0].lower() for part in session.split(";")}
        assert {"secure", "httponly", "path", "samesite"} <= attributes
        assert "domain" not in attributes
        assert "samesite=lax" in session.lower()
        assert "hfs_" not in answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert (await browser.get("/v1/self")).json()["actor"] == answer.json()["actor"]
        site = {"name": "here", "territory": "CH"}
        for headers in ({}, {"origin": "https://evil.example"}, {"origin": "null"}):
            assert (await browser.post("/v1/sites", json=site, headers=headers)).status_code == 401
        own = {"origin": PUBLIC_URL}
        assert (await browser.post("/v1/sites", json=site, headers=own)).status_code == 201
        assert (await browser.post("/v1/self:log-out", headers=own)).status_code == 204
        assert SESSION_COOKIE not in browser.cookies
        assert (await browser.get("/v1/self")).status_code == 401


async def test_an_api_key_in_the_cookie_is_no_session(acme: Acme) -> None:
    async with acme.service.browser() as browser:
        browser.cookies.set(SESSION_COOKIE, acme.administrator.token or "")
        assert (await browser.get("/v1/self")).status_code == 401


async def test_a_command_gets_a_session_for_its_code_and_its_secret(acme: Acme) -> None:
    async with acme.service.browser() as browser:
        asked: dict[str, Any] = {
            "port": 4711,
            "challenge": challenge_of(VERIFIER),
            "state": STATE,
        }
        back = await acme.come_back(browser, await acme.begin(browser, **asked))
    code = handed(back)
    assert "hfs_" not in back.headers["location"]
    wrong = [
        {"verifier": "x" * 43},
        {"verifier": ""},
        {"code": code[:-4] + "AAAA"},
        {"code": ""},
        {"tenant": "ten_x"},
        {"tenant": (await (await acme.service.make_tenant()).get("/v1/tenant")).json()["id"]},
    ]
    seen = {refusal(await acme.redeem(**{"code": code, **changed})) for changed in wrong}
    assert len(seen) == 1
    first = await acme.redeem(code)
    assert first.status_code == 200
    session = acme.service.caller(first.json()["token"])
    assert (await session.get("/v1/self")).status_code == 200
    assert refusal(await acme.redeem(code)) in seen, "a code works once"
    async with acme.service.browser() as browser:
        back = await acme.come_back(browser, await acme.begin(browser, **asked), "again")
    acme.clock.at += timedelta(seconds=61)
    assert refusal(await acme.redeem(handed(back))) in seen, "and for a minute"


async def test_half_of_what_a_command_sends_is_refused(acme: Acme) -> None:
    async with acme.service.browser() as browser:
        halves: list[dict[str, Any]] = [{"port": 4711}, {"port": 4711, "state": STATE}]
        for query in [*halves, {"port": 22}]:
            answer = await browser.get(acme.login, params=query)
            assert answer.status_code in (400, 422), query


async def test_a_browser_that_came_by_another_name_is_sent_on(acme: Acme) -> None:
    async with acme.service.browser() as browser:
        asked: dict[str, Any] = {
            "port": 4711,
            "challenge": challenge_of(VERIFIER),
            "state": STATE,
        }
        other = {"host": "elsewhere:7443"}
        answer = await browser.get(acme.login, params=asked, headers=other)
        there = answer.headers["location"]
        assert there.startswith(f"{PUBLIC_URL}{acme.login}?port=4711&")
        assert LOGIN_COOKIE not in browser.cookies
        again = await browser.get(there, headers=other)
        assert again.headers["location"].startswith(acme.issuer.url), "once is enough"


async def test_an_account_is_issuer_and_subject_and_never_an_address(acme: Acme) -> None:
    local = {"name": "ada", "display_name": "Ada", "role": "viewer"}
    await acme.administrator.post("/v1/users", local)
    acme.issuer.claims = {"preferred_username": "ada", "email": "ada@example.com", "name": "Ada L"}
    first = (await acme.enter("one")).json()["actor"]
    acme.issuer.claims = {"email": "ada@example.com", "sub": "eve", "name": "a\u202eda\n"}
    second = (await acme.enter("two")).json()["actor"]
    acme.issuer.claims = {"email": "other@example.com", "name": "Ada King"}
    assert (await acme.enter("three")).json()["actor"] == first
    users = (await acme.administrator.get("/v1/users")).json()["items"]
    names = {user["id"]: user["display_name"] for user in users}
    assert len(users) == 3
    assert (names[first], names[second]) == ("Ada King", "ada")
    assert (await acme.administrator.post(f"/v1/users/{first}:reset")).status_code == 409
    grants = await acme.administrator.call(
        "PUT", f"/v1/users/{first}/grants", json={"grants": []}, headers={"if-match": "*"}
    )
    assert grants.json()["code"] == "illegal_transition"
    login = {"tenant": acme.tenant, "name": first, "password": PASSWORD, "code": "000000"}
    assert (await acme.service.nobody.post("/v1/login", login)).status_code == 401
    await acme.administrator.post(f"/v1/users/{first}:disable")
    assert (await acme.enter("four")).status_code == 401
    assert "disabled" in (await acme.denials())[-1]


async def test_groups_become_grants_at_each_login(acme: Acme) -> None:
    site = (await acme.administrator.post("/v1/sites", {"name": "a", "territory": "CH"})).json()
    mappings = [
        {"group": "local", "role": "operator", "scope": site["id"]},
        {"group": "all", "role": "viewer"},
    ]
    assert (await acme.configure(mappings=mappings)).status_code == 200
    acme.issuer.claims = {"groups": ["local", "all", "unknown"]}
    session = await acme.enter_command("one")
    actor = (await session.get("/v1/self")).json()["actor"]
    user = (await acme.administrator.get(f"/v1/users/{actor}")).json()
    assert {(one["role"], one["scope"]) for one in user["grants"]} == {
        ("operator", site["id"]),
        ("viewer", acme.tenant),
    }
    acme.issuer.claims = {"groups": "all"}
    session = await acme.enter_command("two")
    user = (await acme.administrator.get(f"/v1/users/{actor}")).json()
    assert [one["role"] for one in user["grants"]] == ["viewer"]
    for groups in (["unknown"], [], None, {"all": True}, 7):
        acme.issuer.claims = {"groups": groups}
        assert (await acme.enter(f"none {groups}")).status_code == 401
    assert "none of the person's groups" in (await acme.denials())[-1]
    acme.issuer.claims = {"groups": ["local"]}
    await acme.administrator.call("DELETE", f"/v1/sites/{site['id']}", headers={"if-match": "*"})
    assert (await acme.enter("gone")).status_code == 401, "what is not there is not granted"
    events = (await acme.administrator.get("/v1/events", params={"limit": 200})).json()["items"]
    kinds = [event["kind"] for event in events if event["subject"] == actor]
    assert kinds.count("users.made") == 1
    assert kinds.count("users.granted") == 2


async def test_groups_may_come_from_userinfo_of_the_same_person(acme: Acme) -> None:
    acme.issuer.claims = {"groups": None}
    acme.issuer.userinfo = {"sub": "ada", "groups": ["admins"], "iss": "https://evil.example"}
    assert (await acme.enter("one")).status_code == 200
    acme.issuer.userinfo = {"sub": "eve", "groups": ["admins"]}
    assert (await acme.enter("two")).status_code == 401
    acme.issuer.userinfo = None
    assert (await acme.enter("three")).status_code == 401


async def test_every_refusal_looks_the_same_and_the_tenant_is_told_why(acme: Acme) -> None:
    other = await make_acme(acme.service, acme.issuer, acme.clock)
    seen, replay = {}, ""
    async with acme.service.browser() as browser:
        state = await acme.begin(browser)
        carried = browser.cookies[LOGIN_COOKIE]
        seen["another state"] = await acme.come_back(browser, "x" * 43)
        seen["no state"] = await browser.get(f"{acme.login}/callback", params={"code": "c"})
        seen["another tenant's login"] = await other.come_back(browser, state)
        assert (await acme.come_back(browser, state)).status_code == 200
        browser.cookies.set(LOGIN_COOKIE, carried, domain="holdfast.local")
        replay = state
    async with acme.service.browser() as browser:
        seen["no cookie"] = await acme.come_back(browser, replay)
        browser.cookies.set(LOGIN_COOKIE, carried)
        seen["replayed"] = await acme.come_back(browser, replay, "new code")
        browser.cookies.set(LOGIN_COOKIE, carried[:-8] + "AAAAAAAA")
        seen["changed cookie"] = await acme.come_back(browser, replay)
    async with acme.service.browser() as browser:
        foreign = await other.begin(browser)
        seen["a login of another tenant"] = await acme.come_back(browser, foreign)
    for name, make in {
        "alg none": lambda _: "eyJhbGciOiJub25lIn0.e30.",
        "another nonce": lambda _: acme.issuer.token(nonce="other"),
        "another audience": lambda _: acme.issuer.token(aud="other"),
    }.items():
        acme.issuer.make_token = make
        seen[name] = await acme.enter(name)
    acme.issuer.make_token = None
    async with acme.service.browser() as browser:
        state = await acme.begin(browser)
        query = {"error": "access_denied", "state": state}
        seen["refused there"] = await browser.get(f"{acme.login}/callback", params=query)
    async with acme.service.browser() as browser:
        state = await acme.begin(browser)
        seen["another issuer"] = await acme.come_back(browser, state, iss="https://evil.example")
    async with acme.service.browser() as browser:
        state = await acme.begin(browser)
        acme.clock.at += timedelta(minutes=11)
        seen["late"] = await acme.come_back(browser, state)
    nobody = {"absent": "ten_01hq3v5k8m9n2p4r6s7t8w9x0z", "bad": "x"}
    for name, tenant in nobody.items():
        seen[name] = await acme.service.nobody.get(f"/v1/login/{tenant}")
    without = await acme.service.make_tenant()
    own = (await without.get("/v1/tenant")).json()["id"]
    seen["no issuer"] = await acme.service.nobody.get(f"/v1/login/{own}")
    answers = {name: refusal(answer) for name, answer in seen.items()}
    assert len(set(answers.values())) == 1, answers
    assert next(iter(answers.values()))[0] == 401
    told = " ".join(await acme.denials())
    for word in ("algorithm", "nonce", "does not verify", "another issuer", "refused the person"):
        assert word in told, word


async def test_a_new_key_is_looked_for_once_in_a_while(acme: Acme) -> None:
    assert (await acme.enter("one")).status_code == 200
    old, acme.issuer.key = acme.issuer.key, make_rsa_key("second")
    acme.issuer.published = [key.as_dict(private=False) for key in (old, acme.issuer.key)]
    before = acme.issuer.asked.count("/jwks")
    assert (await acme.enter("two")).status_code == 401, "looked at within the minute"
    acme.monotonic.seconds += KEYS_SECONDS_MIN + 1
    assert (await acme.enter("three")).status_code == 200
    assert acme.issuer.asked.count("/jwks") == before + 1
    acme.issuer.key = make_rsa_key("never published")
    for number in range(5):
        assert (await acme.enter(f"unknown {number}")).status_code == 401
    acme.monotonic.seconds += KEYS_SECONDS_MIN + 1
    for number in range(5):
        assert (await acme.enter(f"still unknown {number}")).status_code == 401
    assert acme.issuer.asked.count("/jwks") == before + 2


async def test_an_issuer_that_is_away_is_said_to_be_and_left_alone_for_a_while(acme: Acme) -> None:
    acme.issuer.answer = (500, {}, b"secret inside")
    for _ in range(3):
        answer = await acme.service.nobody.get(acme.login)
        assert (answer.status_code, answer.json()["code"]) == (503, "issuer_unavailable")
        assert "secret inside" not in answer.text
    assert len(acme.issuer.asked) == 1
    acme.monotonic.seconds += 6
    for wrong in (b"no json", b"[]", b"{}", b'{"issuer": "https://evil.example"}'):
        acme.issuer.answer = (200, {}, wrong)
        assert (await acme.service.nobody.get(acme.login)).status_code == 503
        acme.monotonic.seconds += 6
    acme.issuer.answer = None
    acme.issuer.document = {"token_endpoint": "file:///etc/passwd"}
    assert (await acme.service.nobody.get(acme.login)).status_code == 503
    acme.monotonic.seconds += 6
    acme.issuer.document = {}
    assert (await acme.enter()).status_code == 200
