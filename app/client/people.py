"""Calls about who may come in: people and API keys, and what they are granted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import RootModel

from app.client.client import Client
from app.identity.schemas import ApiKeyOutput, GrantInput, GrantsInput
from app.oidc.schemas import EnforceInput, IssuerOutput, RedeemInput
from app.users.schemas import AcceptOutput, LoginOutput, UserInput, UserInvited, UserOutput

#: What goes out as it is: the schemas of requests hide secrets, also from what is sent.
_Plain = RootModel[dict[str, Any]]


class People(Client):
    """As Client, with people and grants."""

    def list_users(self) -> Iterator[UserOutput]:
        """All of them, disabled ones too."""
        return self._pages("/v1/users", UserOutput)

    def invite_user(self, wanted: UserInput) -> UserInvited:
        """A new account, with its invitation."""
        return self._send("POST", "/v1/users", UserInvited, wanted)

    def reset_user(self, user_id: str) -> UserInvited:
        """A new invitation; password, authenticator and sessions end."""
        return self._send("POST", f"/v1/users/{user_id}:reset", UserInvited)

    def disable_user(self, user_id: str) -> UserOutput:
        """Shut a person out at once."""
        return self._send("POST", f"/v1/users/{user_id}:disable", UserOutput)

    def grant_user(self, user_id: str, grants: Sequence[GrantInput]) -> UserOutput:
        """Give a person these grants and no others, whatever they had."""
        return UserOutput.model_validate_json(self._grant(f"/v1/users/{user_id}", grants))

    def grant_api_key(self, api_key_id: str, grants: Sequence[GrantInput]) -> ApiKeyOutput:
        """Give a key these grants and no others, whatever it had."""
        return ApiKeyOutput.model_validate_json(self._grant(f"/v1/api-keys/{api_key_id}", grants))

    # --- the issuer

    def get_issuer(self) -> IssuerOutput:
        """The tenant's issuer; Refused with `not_found` without one."""
        return self._send("GET", "/v1/issuer", IssuerOutput)

    def put_issuer(self, wanted: dict[str, Any]) -> IssuerOutput:
        """Make it, or change all of it, whatever it was."""
        body = _Plain(wanted)
        answer = self._call("PUT", "/v1/issuer", body, headers={"if-match": "*"})
        return IssuerOutput.model_validate_json(answer.content)

    def enforce_issuer(self, user_id: str) -> IssuerOutput:
        """Refuse local logins of everybody but this one."""
        wanted = EnforceInput.model_construct(break_glass_user_id=user_id)
        return self._send("POST", "/v1/issuer:enforce", IssuerOutput, wanted)

    def relax_issuer(self) -> IssuerOutput:
        """Allow local logins again."""
        return self._send("POST", "/v1/issuer:relax", IssuerOutput)

    def delete_issuer(self) -> None:
        """Remove it as it is now."""
        self._change("DELETE", "/v1/issuer")

    # --- coming in

    def log_in(self, tenant: str, name: str, password: str, code: str) -> LoginOutput:
        """Locally: a session."""
        words = {"tenant": tenant, "name": name, "password": password, "code": code}
        return self._send("POST", "/v1/login", LoginOutput, _Plain(words))

    def redeem_login(self, wanted: RedeemInput) -> LoginOutput:
        """Through the issuer: a session for what the browser brought."""
        return self._send("POST", "/v1/login:redeem", LoginOutput, wanted)

    def accept_invitation(self, password: str) -> AcceptOutput:
        """As who holds an invitation: what the authenticator needs."""
        body = _Plain({"password": password})
        return self._send("POST", "/v1/invitations:accept", AcceptOutput, body)

    def log_out(self) -> None:
        """End the session."""
        self._call("POST", "/v1/self:log-out")

    def _grant(self, path: str, grants: Sequence[GrantInput]) -> bytes:
        version = self._call("GET", path).headers["etag"]
        body = GrantsInput.model_construct(grants=list(grants))
        return self._call("PUT", f"{path}/grants", body, headers={"if-match": version}).content
