"""The route of a machine that becomes a data node: it proves itself by its join token."""

from __future__ import annotations

from starlette.requests import Request

from app.database.sessions import ProviderSession
from app.datanodes.service import use_join_token
from app.datanodes.tokens import parse_join
from app.http.routing import ProviderRoute, bearer_of
from app.http.unit import Tools
from app.identity.principals import Principal, refused
from app.identity.tokens import Token


class NodeJoinRoute(ProviderRoute):
    """Whoever comes in holds a join token, which is used up by it."""

    takes_key = False

    def credential(self, request: Request) -> Token:
        token = parse_join(bearer_of(request))
        if token is None:
            raise refused()
        return token

    async def authenticate(
        self, session: ProviderSession, tools: Tools, credential: Token
    ) -> Principal:
        return await use_join_token(session, credential, tools)
