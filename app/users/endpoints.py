"""`/v1/users`, invitations, logins, `/v1/self`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, status

from app.http.cookies import SESSION_COOKIE, drop_cookie
from app.http.etags import check_etag, put_etag
from app.http.listing import Cursor, Limit, Listing, Sort, list_page
from app.http.routing import requires, tenant_router
from app.http.schemas import Page
from app.http.unit import TenantUnit, tenant_unit
from app.identity.grants import load_grants, resolve_grants, show_grants
from app.identity.privileges import Privilege
from app.identity.schemas import GrantsInput
from app.identity.scopes import Granted
from app.identity.tokens import Token
from app.kit.ids import Kind, show
from app.kit.paging import LIMIT_DEFAULT
from app.models import User
from app.users import service
from app.users.passwords import code_uri
from app.users.routes import InvitationRoute, LoginRoute
from app.users.schemas import (
    AcceptInput,
    AcceptOutput,
    LoginInput,
    LoginOutput,
    SelfOutput,
    UserInput,
    UserInvited,
    UserOutput,
)

router = tenant_router("users")
inviting = APIRouter(prefix="/v1", tags=["users"], route_class=InvitationRoute)
logging_in = APIRouter(prefix="/v1", tags=["users"], route_class=LoginRoute)
Unit = Annotated[TenantUnit, Depends(tenant_unit)]
_READ, _WRITE = [requires(Privilege.USERS_READ)], [requires(Privilege.USERS_WRITE)]
_SELF = [requires(Privilege.SELF)]


def _show(user: User, grants: Sequence[Granted]) -> UserOutput:
    return UserOutput(
        id=show(Kind.USER, user.id),
        name=user.name,
        display_name=user.display_name,
        grants=show_grants(user.tenant_id, grants),
        state=user.state,
        created_at=user.created_at,
    )


async def _shown(unit: TenantUnit, users: Sequence[User]) -> list[UserOutput]:
    grants = await load_grants(unit.session, users)
    return [_show(user, grants[user.id]) for user in users]


async def _invited(unit: TenantUnit, user: User, token: Token) -> UserInvited:
    assert user.invitation_expires_at is not None
    await unit.session.orm.flush()
    shown = (await _shown(unit, [user]))[0]
    return UserInvited(
        **shown.model_dump(),
        invitation=token.text,
        invitation_expires_at=user.invitation_expires_at,
    )


@router.get("/users", dependencies=_READ, summary="List users")
async def list_users(
    unit: Unit, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None, sort: Sort = None
) -> Page[UserOutput]:
    """People with local accounts, disabled ones too, a page at a time."""
    rows, following = await list_page(unit, User, Listing(limit, cursor, sort))
    return Page(items=await _shown(unit, rows), next_cursor=following)


@router.post(
    "/users", dependencies=_WRITE, status_code=status.HTTP_201_CREATED, summary="Invite a user"
)
async def invite_user(unit: Unit, wanted: UserInput, response: Response) -> UserInvited:
    """A new account with its first grant. Its invitation is in this answer and nowhere else."""
    user, token = await service.invite_user(unit, wanted, await resolve_grants(unit, [wanted]))
    shown = await _invited(unit, user, token)
    response.headers["location"] = f"/v1/users/{shown.id}"
    put_etag(response, user.version)
    return shown


@router.get("/users/{user_id}", dependencies=_READ, summary="Get a user")
async def get_user(unit: Unit, user_id: str, response: Response) -> UserOutput:
    """One person."""
    user = await service.get_user(unit, user_id)
    put_etag(response, user.version)
    return (await _shown(unit, [user]))[0]


@router.put("/users/{user_id}/grants", dependencies=_WRITE, summary="Replace a user's grants")
async def grant_user(
    unit: Unit, user_id: str, wanted: GrantsInput, request: Request, response: Response
) -> UserOutput:
    """All their grants at once, which ends their sessions; If-Match says which version is meant.
    Nobody gives what he does not have.
    """
    user = await service.get_user(unit, user_id, lock=True)
    check_etag(request, user.version)
    await service.grant_user(unit, user, await resolve_grants(unit, wanted.grants))
    await unit.session.orm.flush()
    put_etag(response, user.version)
    return (await _shown(unit, [user]))[0]


@router.post("/users/{user_id}:reset", dependencies=_WRITE, summary="Invite a user again")
async def reset_user(unit: Unit, user_id: str) -> UserInvited:
    """For who lost password or authenticator: both end, and every session."""
    user = await service.get_user(unit, user_id)
    return await _invited(unit, user, await service.reset_user(unit, user))


@router.post("/users/{user_id}:disable", dependencies=_WRITE, summary="Disable a user")
async def disable_user(unit: Unit, user_id: str) -> UserOutput:
    """Shut a person out at once, and end every session; never delayed."""
    user = await service.get_user(unit, user_id)
    await service.disable_user(unit, user)
    return (await _shown(unit, [user]))[0]


@router.get("/self", dependencies=_SELF, summary="Tell who is calling")
async def get_self(unit: Unit) -> SelfOutput:
    """The caller's tenant, name and privileges."""
    return SelfOutput(
        tenant_id=show(Kind.TENANT, unit.session.tenant_id),
        actor=unit.principal.actor,
        privileges=sorted(unit.principal.privileges),
    )


@router.post(
    "/self:log-out",
    dependencies=_SELF,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Log out",
)
async def log_out(unit: Unit, response: Response) -> None:
    """End the session whose token or cookie came with the request."""
    await service.end_session(unit)
    drop_cookie(response, SESSION_COOKIE)


@inviting.post(
    "/invitations:accept",
    dependencies=[requires(Privilege.INVITATION_ACCEPT)],
    summary="Accept an invitation",
)
async def accept_invitation(unit: Unit, wanted: AcceptInput) -> AcceptOutput:
    """With an invitation as the bearer token: choose a password, get the authenticator's secret."""
    user, secret = await service.accept_invitation(unit, wanted)
    return AcceptOutput(name=user.name, code_secret=secret, code_uri=code_uri(secret, user.name))


@logging_in.post("/login", dependencies=[requires(Privilege.LOGIN)], summary="Log in")
async def log_in(unit: Unit, wanted: LoginInput) -> LoginOutput:  # noqa: ARG001 - in the schema
    """With a password and a one-time code: a session of 12 h, 30 min when idle."""
    token, ends = await service.begin_session(unit)
    return LoginOutput(token=token.text, expires_at=ends)
