"""`holdfast user` and `holdfast api-key`: who may come in, and what they may do where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli.control import (
    Json,
    ProfileName,
    SaveToken,
    Yes,
    check_save,
    go_on,
    group,
    show_one,
    show_rows,
    show_secret,
)
from workers.cli.options import OutputOptions, command

if TYPE_CHECKING:
    from app.client.people import People
    from app.identity.schemas import GrantInput

user_app = group("People of the tenant with local accounts.")
key_app = group("API keys of the tenant.")
GROUPS = {"user": user_app, "api-key": key_app}

RoleOption = Annotated[str, typer.Option("--role", help="administrator, operator or viewer")]
ScopeOption = Annotated[
    str | None,
    typer.Option("--scope", help="A site's or a group's id; the whole tenant without."),
]
Grants = Annotated[
    list[str] | None,
    typer.Argument(help="ROLE, or ROLE@SCOPE with a site's or a group's id. None: nothing at all."),
]


def connect_people(profile: str | None) -> People:
    """A client of the profile's service, for people and grants."""
    from app.client.people import People
    from app.client.profiles import Profiles

    return People(Profiles().get(profile))


def _grants(texts: list[str] | None) -> list[GrantInput]:
    from app.identity.schemas import GrantInput

    pairs = [text.partition("@") for text in texts or []]
    return [GrantInput.model_construct(role=role, scope=scope or None) for role, _, scope in pairs]


# --- people


@dataclass(kw_only=True)
class InviteOptions(OutputOptions):
    """Whom, and what they may do."""

    name: Annotated[str, typer.Argument(help="What the person logs in with.")]
    role: RoleOption
    scope: ScopeOption = None
    display_name: Annotated[str | None, typer.Option(help="As others read it.")] = None
    profile: ProfileName = None


def invite_user(options: InviteOptions) -> None:
    """A new account. Its invitation is shown this once: give it to the person."""
    from app.users.schemas import UserInput

    wanted = UserInput.model_construct(
        name=options.name,
        display_name=options.display_name or options.name,
        role=options.role,
        scope=options.scope,
    )
    with connect_people(options.profile) as client:
        show_one(client.invite_user(wanted), as_json=options.json)


command(user_app, "invite", InviteOptions)(invite_user)


@user_app.command("list")
def list_users(profile: ProfileName = None, as_json: Json = False) -> None:
    """People that the caller may see, disabled ones too."""
    columns = ("id", "name", "display_name", "state", "grants")
    with connect_people(profile) as client:
        show_rows(client.list_users(), columns, as_json=as_json)


@user_app.command("grant")
def grant_user(
    user_id: str,
    grants: Grants = None,
    yes: Yes = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Give a person these grants and no others. It ends their sessions."""
    go_on(f"Replace all grants of {user_id}, and end their sessions?", yes=yes)
    with connect_people(profile) as client:
        show_one(client.grant_user(user_id, _grants(grants)), as_json=as_json)


@user_app.command("reset")
def reset_user(
    user_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """For who lost password or authenticator: both end, and every session; a new invitation."""
    go_on(f"End the password, the authenticator and the sessions of {user_id}?", yes=yes)
    with connect_people(profile) as client:
        show_one(client.reset_user(user_id), as_json=as_json)


@user_app.command("disable")
def disable_user(
    user_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Shut a person out at once, and end their sessions."""
    go_on(f"Shut {user_id} out?", yes=yes)
    with connect_people(profile) as client:
        show_one(client.disable_user(user_id), as_json=as_json)


# --- API keys


@dataclass(kw_only=True)
class KeyOptions(OutputOptions):
    """Which key, and what it may do."""

    name: Annotated[str, typer.Argument(help="For people.")]
    role: RoleOption
    scope: ScopeOption = None
    save_token: SaveToken = None
    profile: ProfileName = None


def create_api_key(options: KeyOptions) -> None:
    """A new API key. Its token is shown this once."""
    from app.identity.schemas import ApiKeyInput

    check_save(options.save_token)
    wanted = ApiKeyInput.model_construct(
        name=options.name, role=options.role, scope=options.scope, expires_at=None
    )
    with connect_people(options.profile) as client:
        show_secret(client.create_api_key(wanted), options.save_token, as_json=options.json)


command(key_app, "create", KeyOptions)(create_api_key)


@key_app.command("list")
def list_api_keys(profile: ProfileName = None, as_json: Json = False) -> None:
    """All API keys that the caller may see, revoked ones too."""
    columns = ("id", "name", "grants", "last_used_at", "revoked_at")
    with connect_people(profile) as client:
        show_rows(client.list_api_keys(), columns, as_json=as_json)


@key_app.command("grant")
def grant_api_key(
    api_key_id: str,
    grants: Grants = None,
    yes: Yes = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Give a key these grants and no others."""
    go_on(f"Replace all grants of {api_key_id}?", yes=yes)
    with connect_people(profile) as client:
        show_one(client.grant_api_key(api_key_id, _grants(grants)), as_json=as_json)


@key_app.command("revoke")
def revoke_api_key(
    api_key_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """End an API key at once and for good."""
    go_on(f"End {api_key_id} for good?", yes=yes)
    with connect_people(profile) as client:
        show_one(client.revoke_api_key(api_key_id), as_json=as_json)
