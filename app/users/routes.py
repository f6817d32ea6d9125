"""Routes for people who are only about to come in."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request

from app.http.routing import Entry, TenantRoute, bearer_of, circumstances_of
from app.identity.principals import Principal, refused
from app.identity.tokens import INVITATION, Token, parse_token
from app.kit.ids import BadId, Kind, parse
from app.kit.problems import Problem
from app.users.entering import (
    authenticate_invitation,
    authenticate_login,
    check_password,
    note_failure,
)
from app.users.schemas import LoginInput


class InvitationRoute(TenantRoute):
    """Whoever comes in holds an invitation, which is used up by it."""

    async def credential(self, request: Request) -> Token:
        token = parse_token(bearer_of(request))
        if token is None or token.kind != INVITATION:
            raise refused()
        return token

    async def authenticate(self, entry: Entry) -> Principal:
        tools, token = entry.tools, entry.credential
        return await authenticate_invitation(entry.session, token, tools.sealer, tools.clock.now())


class LoginRoute(TenantRoute):
    """Whoever comes in knows a password and has an authenticator."""

    has_bearer = False

    async def credential(self, request: Request) -> Token:
        wanted = await _login(request)
        try:
            tenant_id = parse(Kind.TENANT, wanted.tenant)
        except BadId:
            raise refused() from None
        credential = Token(tenant_id, tenant_id, "")
        if not await check_password(request.app.state.tools.database, tenant_id, wanted):
            await self.on_refused(request, credential)
            raise refused()
        return credential

    async def authenticate(self, entry: Entry) -> Principal:
        wanted, tools = await _login(entry.request), entry.tools
        return await authenticate_login(entry.session, wanted, tools.sealer, tools.clock.now())

    async def on_refused(self, request: Request, credential: Token) -> None:
        assert credential.tenant_id is not None
        database = request.app.state.tools.database
        by = circumstances_of(request, "")
        await note_failure(database, credential.tenant_id, await _login(request), by)


async def _login(request: Request) -> LoginInput:
    try:
        return LoginInput.model_validate_json(await request.body())
    except ValidationError:
        raise Problem(
            "bad_request", "This is not a login.", hint="See the schema of /v1/login."
        ) from None
