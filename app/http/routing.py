"""Routes that are deny-by-default: each names a privilege, and a request is one unit of work."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from app.database.sessions import ProviderSession, TenantSession
from app.events.ledger import Act, Circumstances, write_ledger
from app.http import idempotency, provider_idempotency
from app.http.cookies import session_of
from app.http.limits import check_body
from app.http.unit import ProviderUnit, TenantUnit, Tools
from app.identity.principals import (
    Principal,
    authenticate_entry,
    authenticate_provider,
    authenticate_tenant,
    refused,
)
from app.identity.privileges import Privilege
from app.identity.scopes import Reach
from app.identity.tokens import ENTRY, KEY, SESSION, Token, parse_token
from app.kit.problems import Problem
from app.users.entering import authenticate_session

_ENTER = {
    KEY: authenticate_tenant,
    SESSION: authenticate_session,
    ENTRY: authenticate_entry,
}
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Requires:
    """A dependency that refuses who lacks a privilege; routes are checked to have one."""

    def __init__(self, privilege: Privilege) -> None:
        self.privilege = privilege

    async def __call__(self, request: Request) -> None:
        request.state.unit.require(self.privilege)


def requires(privilege: Privilege) -> Any:
    """For a route's `dependencies`: who calls it needs this privilege."""
    return Depends(Requires(privilege))


def privilege_of(route: APIRoute) -> Privilege | None:
    """The privilege that a route names."""
    for dependency in route.dependencies:
        if isinstance(dependency.dependency, Requires):
            return dependency.dependency.privilege
    return None


@dataclass(frozen=True)
class Entry:
    """Somebody at the door: in whose scope, with what."""

    session: TenantSession
    tools: Tools
    credential: Token
    request: Request


class TenantRoute(APIRoute):
    """A route in a tenant's scope: authenticated, one transaction, one effect for each key.

    Kinds of callers differ in `credential`, which says whose scope it is before anything of the
    database is read, and in `authenticate`, which works in that scope.
    """

    #: Whether the credential is the request's bearer token, or a browser's session.
    has_bearer = True

    async def credential(self, request: Request) -> Token:
        """Whom the request says that it comes from; Problem `not_authenticated`."""
        bearer = bearer_of(request)
        token = parse_token(bearer or session_of(request))
        if token is None or token.kind not in _ENTER or not (bearer or token.kind == SESSION):
            raise refused()
        return token

    async def authenticate(self, entry: Entry) -> Principal:
        """Who it is; Problem `not_authenticated`."""
        tools, token = entry.tools, entry.credential
        enter = _ENTER[token.kind]
        return await enter(entry.session, token, tools.sealer, tools.clock.now())

    async def on_refused(self, request: Request, credential: Token) -> None:
        """Somebody was not let in."""

    def get_route_handler(self) -> _Handler:
        original = super().get_route_handler()

        async def handle(request: Request) -> Response:
            await check_body(request)  # a slow sender holds no connection of the database
            tools: Tools = request.app.state.tools
            _check_admission(tools, request)
            credential = await self.credential(request)
            assert credential.tenant_id is not None
            try:
                async with tools.database.tenant(credential.tenant_id) as session:
                    principal = await self.authenticate(Entry(session, tools, credential, request))
                    _admit(tools, request, principal)
                    unit = TenantUnit(
                        session, principal, tools, circumstances_of(request, principal.actor)
                    )
                    request.state.unit = unit
                    return await _answer(request, unit, original)
            except Problem as problem:
                if problem.code == "privilege_missing":
                    await _note_denied(request, problem)
                if problem.code == "not_authenticated":
                    await self.on_refused(request, credential)
                raise

        return handle


async def may_still(request: Request, tools: Tools, privilege: Privilege, reach: Reach) -> bool:
    """Whether who opened a long answer of a tenant's route may still have it, and just as much."""
    route: TenantRoute = request.scope["route"]
    try:
        credential = await route.credential(request)
        assert credential.tenant_id is not None
        async with tools.database.tenant(credential.tenant_id) as session:
            principal = await route.authenticate(Entry(session, tools, credential, request))
            # Undone, not committed: reading on is no sign that somebody is there.
            return principal.reach(privilege) == reach
    except Problem as problem:
        # A database that is away takes nothing from anybody.
        return problem.code == "database_unavailable"


async def _answer(request: Request, unit: TenantUnit, original: _Handler) -> Response:
    key = idempotency.key_of(request)
    if key is not None:
        replay = await idempotency.begin(unit, key, await idempotency.request_hash(request))
        if replay is not None:
            return replay
    response = await original(request)
    await unit.finish(None if key is None else idempotency.keeping(unit, key, response))
    return response


async def _note_denied(request: Request, problem: Problem) -> None:
    """The attempt goes into the audit log, although its own transaction is undone."""
    unit: TenantUnit = request.state.unit
    act = Act(
        f"{request.method} {request.scope['route'].path_format}",
        subject="",
        outcome="denied",
        details={"reason": problem.message},
    )
    async with unit.tools.database.tenant(unit.session.tenant_id) as session:
        await write_ledger(session, [], [act], unit.circumstances)
        await session.commit()


class ProviderRoute(APIRoute):
    """A route of the provider's staff, or of what becomes the provider's."""

    #: False where the credential is used up by the request: it has one effect as it is.
    takes_key = True

    def credential(self, request: Request) -> Token:
        """Whom the request says that it comes from; Problem `not_authenticated`."""
        token = parse_token(bearer_of(request))
        if token is None or token.tenant_id is not None:
            raise refused()
        return token

    async def authenticate(
        self, session: ProviderSession, tools: Tools, credential: Token
    ) -> Principal:
        """Who it is; Problem `not_authenticated`."""
        return await authenticate_provider(session, credential, tools.sealer)

    def get_route_handler(self) -> _Handler:
        original = super().get_route_handler()

        async def handle(request: Request) -> Response:
            await check_body(request)
            tools: Tools = request.app.state.tools
            _check_admission(tools, request)
            credential = self.credential(request)
            async with tools.database.provider() as session:
                principal = await self.authenticate(session, tools, credential)
                _admit(tools, request, principal)
                unit = ProviderUnit(
                    session, principal, tools, circumstances_of(request, principal.actor)
                )
                request.state.unit = unit
                if self.takes_key:
                    return await provider_idempotency.answer_once(request, unit, original)
                response = await original(request)
                await session.commit()
                return response

        return handle


def _check_admission(tools: Tools, request: Request) -> None:
    if tools.admission is not None:
        tools.admission.check(bearer_of(request))


def _admit(tools: Tools, request: Request, principal: Principal) -> None:
    if tools.admission is not None:
        tools.admission.admit(bearer_of(request), principal.tenant_id)


def bearer_of(request: Request) -> str:
    """The request's bearer token, unread; empty without one."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def circumstances_of(request: Request, actor: str) -> Circumstances:
    """Who acts, in which request, from where, when."""
    return Circumstances(
        actor=actor,
        address=request.client.host if request.client else "",
        request_id=request.state.request_id,
        at=request.app.state.tools.clock.now(),
    )


def tenant_router(tag: str) -> APIRouter:
    """A router of tenants' routes, without the tenant in the path."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=TenantRoute)


def provider_router(tag: str) -> APIRouter:
    """A router of the provider's routes."""
    return APIRouter(prefix="/v1/provider", tags=[tag], route_class=ProviderRoute)


def check_routers(routers: Iterable[APIRouter]) -> None:
    """RuntimeError for a route that names no privilege, so that none is open by oversight."""
    for router in routers:
        for route in router.routes:
            guarded = isinstance(route, TenantRoute | ProviderRoute) and privilege_of(route)
            if not guarded:
                raise RuntimeError(f"The route {route} names no privilege.")
