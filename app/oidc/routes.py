"""Routes for people on their way in through their tenant's issuer.

The path or the body names the tenant, so that the scope is set before the first query. The issuer
is called while no connection of the database is held. Whatever is wrong has one answer; the
tenant's audit log says what it was, once it is sure that the login began here.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from uuid import UUID

from pydantic import ValidationError
from starlette.requests import Request

from app.database.sessions import Database
from app.events.ledger import Act, write_ledger
from app.http.cookies import LOGIN_COOKIE
from app.http.routing import Entry, TenantRoute, circumstances_of
from app.http.unit import Tools
from app.identity.principals import Principal, refused
from app.identity.privileges import Privilege
from app.identity.scopes import Granted
from app.identity.tokens import Token
from app.kit.ids import BadId, Kind, parse, show
from app.kit.problems import Problem
from app.models import Issuer, User
from app.models.base import key_of
from app.models.identity import UserState
from app.oidc.accounts import grants_of, open_account
from app.oidc.attempts import (
    Attempt,
    Handoff,
    is_challenge,
    open_attempt,
    open_handoff,
    use_once,
)
from app.oidc.documents import IssuerFailed, issuer_unavailable
from app.oidc.identity import BadIdToken, Identity
from app.oidc.schemas import RedeemInput
from app.oidc.service import find_issuer
from app.oidc.talk import Talk, groups_of
from app.users.entering import is_active

_LOGIN = frozenset({Privilege.LOGIN})


@dataclass
class Arrived:
    """Somebody who came back from the issuer, and what that makes of them."""

    attempt: Attempt
    issuer: Issuer
    identity: Identity
    user: User | None = None
    is_new: bool = False
    grants: tuple[Granted, ...] = ()


def redirect_uri(tools: Tools, tenant_id: UUID) -> str:
    """Where the issuer sends browsers back to: it names the tenant."""
    return f"{login_url(tools, tenant_id)}/callback"


def login_url(tools: Tools, tenant_id: UUID) -> str:
    """Where a browser begins."""
    return f"{tools.public_url}/v1/login/{show(Kind.TENANT, tenant_id)}"


class BeginRoute(TenantRoute):
    """A browser that is sent on to the issuer. Nothing is known of who it is."""

    has_bearer = False

    async def credential(self, request: Request) -> Token:
        tenant_id = _tenant_in_path(request)
        request.state.talk = await _talk_of(request, tenant_id)
        return Token(tenant_id, tenant_id, "")

    async def authenticate(self, entry: Entry) -> Principal:
        tenant_id = entry.session.tenant_id
        return Principal(tenant_id, tenant_id, "", _LOGIN)


class CallbackRoute(TenantRoute):
    """A browser that comes back with a code, and with the cookie that it was given."""

    has_bearer = False

    async def credential(self, request: Request) -> Token:
        tenant_id, tools = _tenant_in_path(request), request.app.state.tools
        attempt = _attempt_of(request, tenant_id)
        if not await _use(tools, tenant_id, attempt):
            raise refused()
        talk = await _talk_of(request, tenant_id)
        try:
            identity = await self._identity(request, talk, attempt)
        except (IssuerFailed, BadIdToken) as error:
            await _note(request, tenant_id, f"{talk.issuer.url}: {error}")
            raise refused() from None
        request.state.arrived = Arrived(attempt, talk.issuer, identity)
        return Token(tenant_id, tenant_id, "")

    async def _identity(self, request: Request, talk: Talk, attempt: Attempt) -> Identity:
        from app.oidc.conversation import exchange

        query = request.query_params
        if talk.issuer.version != attempt.version:
            raise BadIdToken("the issuer's settings were changed meanwhile")
        if query.get("iss", talk.issuer.url) != talk.issuer.url:
            raise BadIdToken("another issuer answered")
        if "code" not in query:
            raise IssuerFailed("It refused the person.")
        now = request.app.state.tools.clock.now()
        return await exchange(talk, attempt, query["code"], now)

    async def authenticate(self, entry: Entry) -> Principal:
        arrived: Arrived = entry.request.state.arrived
        session, now = entry.session, entry.tools.clock.now()
        grants = await grants_of(
            session, arrived.issuer, groups_of(arrived.issuer, arrived.identity)
        )
        if not grants:
            entry.request.state.reason = "none of the person's groups is granted anything"
            raise refused()
        user, arrived.is_new = await open_account(session, arrived.identity, now)
        if user.state != UserState.ACTIVE or not await is_active(session):
            entry.request.state.reason = "the account is disabled"
            raise refused()
        arrived.user, arrived.grants = user, tuple(grants)
        return Principal(session.tenant_id, user.id, show(Kind.USER, user.id), _LOGIN)

    async def on_refused(self, request: Request, credential: Token) -> None:
        assert credential.tenant_id is not None
        arrived: Arrived = request.state.arrived
        subject = arrived.identity.subject
        why = getattr(request.state, "reason", "refused")
        await _note(request, credential.tenant_id, f"{arrived.issuer.url}: {subject}: {why}")


class RedeemRoute(TenantRoute):
    """A command that waited for the browser on the same machine."""

    has_bearer = False

    async def credential(self, request: Request) -> Token:
        wanted, tools = await _redemption(request), request.app.state.tools
        try:
            tenant_id = parse(Kind.TENANT, wanted.tenant)
        except BadId:
            raise refused() from None
        handoff = open_handoff(tools.sealer, tenant_id, wanted.code, tools.clock.now())
        if handoff is None or not is_challenge(wanted.verifier, handoff.challenge):
            raise refused()
        request.state.handoff = handoff
        return Token(tenant_id, tenant_id, "")

    async def authenticate(self, entry: Entry) -> Principal:
        handoff: Handoff = entry.request.state.handoff
        session, tools = entry.session, entry.tools
        if not await use_once(session, tools.sealer, handoff, tools.clock.now()):
            raise refused()
        user = await session.orm.get(
            User, key_of(session.tenant_id, parse(Kind.USER, handoff.user))
        )
        issuer = await find_issuer(session)
        if user is None or user.state != UserState.ACTIVE or not await is_active(session):
            raise refused()
        if issuer is None or issuer.version != handoff.version:
            raise refused()
        return Principal(session.tenant_id, user.id, handoff.user, _LOGIN)


async def _talk_of(request: Request, tenant_id: UUID) -> Talk:
    """With the tenant's issuer; Problems `not_authenticated`, `issuer_unavailable`."""
    tools: Tools = request.app.state.tools
    issuer = await _load(tools.database, tenant_id)
    if issuer is None or not tools.public_url:
        raise refused()
    try:
        document = await tools.issuers.document(tenant_id, issuer.url)
    except IssuerFailed as error:
        raise issuer_unavailable(error) from None
    return Talk(tools.issuers, tools.sealer, issuer, document, redirect_uri(tools, tenant_id))


def _tenant_in_path(request: Request) -> UUID:
    try:
        return parse(Kind.TENANT, request.path_params["tenant_id"])
    except BadId:
        raise refused() from None


def _attempt_of(request: Request, tenant_id: UUID) -> Attempt:
    """The login that began in this browser, of this tenant; Problem `not_authenticated`."""
    tools: Tools = request.app.state.tools
    carried = request.cookies.get(LOGIN_COOKIE, "")
    attempt = open_attempt(tools.sealer, tenant_id, carried, tools.clock.now())
    state = request.query_params.get("state", "")
    if attempt is None or not hmac.compare_digest(state.encode(), attempt.state.encode()):
        raise refused()
    return attempt


async def _use(tools: Tools, tenant_id: UUID, attempt: Attempt) -> bool:
    """At once and for good: also a login that then fails does not work again."""
    async with tools.database.tenant(tenant_id) as session:
        is_first = await use_once(session, tools.sealer, attempt, tools.clock.now())
        await session.commit()
    return is_first


async def _load(database: Database, tenant_id: UUID) -> Issuer | None:
    async with database.tenant(tenant_id) as session:
        return await find_issuer(session) if await is_active(session) else None


async def _note(request: Request, tenant_id: UUID, reason: str) -> None:
    """Why somebody was not let in, for the tenant's administrators."""
    act = Act("users.login", show(Kind.TENANT, tenant_id), "denied", {"reason": reason})
    async with request.app.state.tools.database.tenant(tenant_id) as session:
        await write_ledger(session, [], [act], circumstances_of(request, ""))
        await session.commit()


async def _redemption(request: Request) -> RedeemInput:
    try:
        return RedeemInput.model_validate_json(await request.body())
    except ValidationError:
        raise Problem(
            "bad_request", "This is not a login.", hint="See the schema of /v1/login:redeem."
        ) from None
