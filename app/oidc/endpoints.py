"""`/v1/issuer`, and `/v1/login/{tenant_id}`: in through the tenant's issuer."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, Depends, Query, Request, Response, status
from starlette.responses import JSONResponse, RedirectResponse

from app.http.cookies import LOGIN_COOKIE, SESSION_COOKIE, drop_cookie, put_cookie
from app.http.dependencies import on_loop
from app.http.etags import check_etag, put_etag
from app.http.routing import requires, tenant_router
from app.http.unit import TenantUnit, tenant_unit
from app.identity.privileges import Privilege
from app.kit.ids import Kind, show
from app.kit.problems import Problem, not_found
from app.models import Issuer
from app.oidc import service
from app.oidc.accounts import note_account, settle_account
from app.oidc.attempts import (
    ATTEMPT_LIFETIME,
    HANDOFF_LIFETIME,
    Handoff,
    Waiting,
    make_attempt,
    seal,
)
from app.oidc.routes import (
    Arrived,
    BeginRoute,
    CallbackRoute,
    RedeemRoute,
    login_url,
    redirect_uri,
)
from app.oidc.schemas import (
    EnforceInput,
    EnteredOutput,
    IssuerInput,
    IssuerOutput,
    MappingInput,
    Opaque,
    Port,
    RedeemInput,
)
from app.oidc.talk import Talk
from app.users.schemas import LoginOutput
from app.users.service import begin_session

router = tenant_router("issuer")
beginning = APIRouter(prefix="/v1", tags=["users"], route_class=BeginRoute)
returning = APIRouter(prefix="/v1", tags=["users"], route_class=CallbackRoute)
redeeming = APIRouter(prefix="/v1", tags=["users"], route_class=RedeemRoute)
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.ISSUER_READ)], [requires(Privilege.ISSUER_WRITE)]
_LOGIN = [requires(Privilege.LOGIN)]
_SEE_OTHER = status.HTTP_303_SEE_OTHER


def _show(unit: TenantUnit, issuer: Issuer) -> IssuerOutput:
    break_glass = issuer.break_glass_id
    return IssuerOutput(
        url=issuer.url,
        client_id=issuer.client_id,
        scopes=issuer.scopes,
        groups_claim=issuer.groups_claim,
        mappings=[MappingInput(**one) for one in issuer.mappings],
        redirect_uri=redirect_uri(unit.tools, issuer.tenant_id),
        login_url=login_url(unit.tools, issuer.tenant_id),
        is_enforced=issuer.enforced_at is not None,
        enforced_at=issuer.enforced_at,
        break_glass_user_id=None if break_glass is None else show(Kind.USER, break_glass),
        created_at=issuer.created_at,
    )


@router.get("/issuer", dependencies=_READ, summary="Get the tenant's issuer")
async def get_issuer(unit: Unit, response: Response) -> IssuerOutput:
    """The OpenID Connect issuer that the tenant's people log in with, without its secret."""
    issuer = await service.get_issuer(unit)
    put_etag(response, issuer.version)
    return _show(unit, issuer)


@router.put("/issuer", dependencies=_WRITE, summary="Configure the tenant's issuer")
async def put_issuer(
    unit: Unit, wanted: IssuerInput, request: Request, response: Response
) -> IssuerOutput:
    """Makes it, or with If-Match changes all of it at once; whoever came through it comes again."""
    issuer = await service.find_issuer(unit.session, lock=True)
    if issuer is not None:
        check_etag(request, issuer.version)
    elif "if-match" in request.headers and request.headers["if-match"] != "*":
        raise not_found()
    issuer = await service.put_issuer(unit, issuer, wanted)
    await unit.session.orm.flush()
    put_etag(response, issuer.version)
    return _show(unit, issuer)


@router.delete(
    "/issuer",
    dependencies=_WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Remove the tenant's issuer",
)
async def delete_issuer(unit: Unit, request: Request) -> None:
    """Nobody comes in through it any more, and who did is out; If-Match says which version is
    meant.
    """
    issuer = await service.get_issuer(unit, lock=True)
    check_etag(request, issuer.version)
    await service.delete_issuer(unit, issuer)


@router.post("/issuer:enforce", dependencies=_WRITE, summary="Enforce the tenant's issuer")
async def enforce_issuer(unit: Unit, wanted: EnforceInput, response: Response) -> IssuerOutput:
    """Refuse local logins of everybody but one administrator. Only for who came in through the
    issuer as it is configured now: that is how it is known to work.
    """
    issuer = await service.get_issuer(unit, lock=True)
    await service.enforce_issuer(unit, issuer, wanted.break_glass_user_id)
    put_etag(response, issuer.version)
    return _show(unit, issuer)


@router.post("/issuer:relax", dependencies=_WRITE, summary="Allow local logins again")
async def relax_issuer(unit: Unit, response: Response) -> IssuerOutput:
    """The issuer stays, beside local accounts. Repeats change nothing."""
    issuer = await service.get_issuer(unit, lock=True)
    await service.relax_issuer(unit, issuer)
    put_etag(response, issuer.version)
    return _show(unit, issuer)


class _Command:
    """What a command on the browser's own machine asks to be told."""

    def __init__(
        self,
        port: Annotated[Port | None, Query(description="Where it waits, on 127.0.0.1.")] = None,
        challenge: Annotated[Opaque | None, Query(description="S256 of its secret.")] = None,
        state: Annotated[Opaque | None, Query(description="Its own state.")] = None,
        moved: Annotated[bool, Query(description="It was sent on to this address.")] = False,
    ) -> None:
        self.moved = moved
        self.waiting: Waiting | None = None
        if port is not None and challenge is not None and state is not None:
            self.waiting = Waiting(port, state, challenge)
        elif (port, challenge, state) != (None, None, None):
            raise Problem("bad_request", "A command sends `port`, `challenge` and `state`.")


@beginning.get(
    "/login/{tenant_id}",
    dependencies=_LOGIN,
    status_code=_SEE_OTHER,
    response_class=RedirectResponse,
    summary="Log in through the tenant's issuer",
)
async def begin_login(
    unit: Unit,
    request: Request,
    tenant_id: str,  # noqa: ARG001 - in the schema
    command: Annotated[_Command, Depends(on_loop(_Command))],
) -> RedirectResponse:
    """For browsers: on to the issuer. With the three parameters, a command on the browser's own
    machine gets a code that only its secret redeems; without, the browser gets a session.
    """
    if request.url.netloc != urlsplit(unit.tools.public_url).netloc and not command.moved:
        # Cookies are of one host: it is the one to which the issuer sends the browser back.
        query = urlencode({**request.query_params, "moved": "true"})
        there = login_url(unit.tools, unit.session.tenant_id)
        return RedirectResponse(f"{there}?{query}", _SEE_OTHER)
    from app.oidc.conversation import authorization_url

    talk: Talk = request.state.talk
    attempt = make_attempt(talk.issuer.version, unit.now, command.waiting)
    answer = RedirectResponse(authorization_url(talk, attempt), _SEE_OTHER)
    carried = seal(unit.tools.sealer, unit.session.tenant_id, attempt)
    put_cookie(answer, LOGIN_COOKIE, carried, unit.now + ATTEMPT_LIFETIME)
    _keep_out(answer)
    return answer


@returning.get(
    "/login/{tenant_id}/callback",
    dependencies=_LOGIN,
    responses={_SEE_OTHER: {"description": "To the command that waits on the same machine."}},
    summary="Come back from the tenant's issuer",
)
async def return_from_issuer(
    unit: Unit,
    request: Request,
    tenant_id: str,  # noqa: ARG001 - in the schema
) -> EnteredOutput:
    """For browsers, with a code and the state of a login that began in the same browser. Each
    works once.
    """
    arrived: Arrived = request.state.arrived
    assert arrived.user is not None
    if arrived.is_new:
        note_account(unit, arrived.user)
    await settle_account(unit, arrived.user, arrived.identity, arrived.grants)
    waiting = arrived.attempt.waiting
    if waiting is None:
        answer: Response = await _with_cookie(unit, arrived)
    else:
        answer = RedirectResponse(_handed_to(unit, arrived, waiting), _SEE_OTHER)
    drop_cookie(answer, LOGIN_COOKIE)
    _keep_out(answer)
    return answer  # type: ignore[return-value]


async def _with_cookie(unit: TenantUnit, arrived: Arrived) -> Response:
    proven = arrived.identity.authenticated_at
    token, ends = await begin_session(unit, arrived.issuer.version, proven)
    shown = EnteredOutput(actor=unit.principal.actor, expires_at=ends)
    answer = JSONResponse(shown.model_dump(mode="json"))
    put_cookie(answer, SESSION_COOKIE, token.text, ends)
    return answer


def _handed_to(unit: TenantUnit, arrived: Arrived, waiting: Waiting) -> str:
    proven = arrived.identity.authenticated_at
    handoff = Handoff(
        secrets.token_urlsafe(16),
        unit.principal.actor,
        arrived.issuer.version,
        None if proven is None else proven.timestamp(),
        waiting.challenge,
        (unit.now + HANDOFF_LIFETIME).timestamp(),
    )
    code = seal(unit.tools.sealer, unit.session.tenant_id, handoff)
    query = urlencode({"code": code, "state": waiting.state})
    return f"http://127.0.0.1:{waiting.port}/?{query}"


def _keep_out(answer: Response) -> None:
    """Of caches, and of what the next page is told."""
    answer.headers["cache-control"] = "no-store"
    answer.headers["referrer-policy"] = "no-referrer"


@redeeming.post("/login:redeem", dependencies=_LOGIN, summary="Redeem a login's code")
async def redeem_login(
    unit: Unit,
    wanted: RedeemInput,  # noqa: ARG001 - in the schema
    request: Request,
) -> LoginOutput:
    """For a command that waited for the browser: a session, for the code and the command's own
    secret. Works once, for a minute.
    """
    handoff: Handoff = request.state.handoff
    proven = handoff.authenticated
    at = None if proven is None else datetime.fromtimestamp(proven, UTC)
    token, ends = await begin_session(unit, handoff.version, at)
    return LoginOutput(token=token.text, expires_at=ends)
