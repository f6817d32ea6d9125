"""Routes for machines that have no API key: they prove themselves by a token or by a key."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request

from app.hosts.enrolment import authenticate_join, authenticate_renewal, read_claim
from app.hosts.schemas import RenewalInput
from app.hosts.tokens import parse_join
from app.http.routing import Entry, TenantRoute, bearer_of
from app.identity.principals import Principal, refused
from app.identity.tokens import Token
from app.kit.problems import Problem


class JoinRoute(TenantRoute):
    """Whoever comes in holds a join token, which is used up by it."""

    async def credential(self, request: Request) -> Token:
        token = parse_join(bearer_of(request))
        if token is None or token.tenant_id is None:
            raise refused()
        return token

    async def authenticate(self, entry: Entry) -> Principal:
        tools = entry.tools
        return await authenticate_join(
            entry.session, entry.credential, tools.sealer, tools.clock.now()
        )


class RenewalRoute(TenantRoute):
    """Whoever comes in holds the key of a certificate that we signed."""

    has_bearer = False

    async def credential(self, request: Request) -> Token:
        claim = read_claim(_renewal(await request.body()))
        return Token(claim.tenant_id, claim.host_id, "")

    async def authenticate(self, entry: Entry) -> Principal:
        claim = read_claim(_renewal(await entry.request.body()))
        tools = entry.tools
        return await authenticate_renewal(entry.session, claim, tools.sealer, tools.clock.now())


def _renewal(body: bytes) -> RenewalInput:
    try:
        return RenewalInput.model_validate_json(body)
    except ValidationError:
        raise Problem(
            "bad_request", "This is not a renewal.", hint="See the schema of /v1/renewals."
        ) from None


def machine_router(route: type[TenantRoute]) -> APIRouter:
    """A router of such routes."""
    return APIRouter(prefix="/v1", tags=["hosts"], route_class=route)
