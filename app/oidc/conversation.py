"""What is said to an issuer: where a login begins, and what a code is worth when it comes back.
Loaded when the first login begins.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from app.oidc.attempts import Attempt
from app.oidc.documents import CALL_SECONDS_MAX, IssuerFailed
from app.oidc.fetching import fetch_json
from app.oidc.identity import BadIdToken, Expected, Identity, UnknownKey
from app.oidc.service import open_secret
from app.oidc.talk import Talk
from app.oidc.tokens import check_id_token
from app.outbound.policy import STEP_SECONDS_MAX, OutboundRefused

#: Asks the issuer to say when the person proved who they are, and to ask anew after a day's work.
_MAX_AGE_SECONDS = 12 * 3600


def _client(talk: Talk) -> AsyncOAuth2Client:
    """An OAuth client behind the guard."""
    return AsyncOAuth2Client(
        client_id=talk.issuer.client_id,
        client_secret=open_secret(talk.sealer, talk.issuer),
        redirect_uri=talk.redirect_uri,
        scope=" ".join(dict.fromkeys(["openid", *talk.issuer.scopes])),
        code_challenge_method="S256",
        transport=talk.issuers.transport(),
        trust_env=False,
        timeout=STEP_SECONDS_MAX,
    )


def authorization_url(talk: Talk, attempt: Attempt) -> str:
    """Where the browser goes: the code flow with PKCE."""
    url, _ = _client(talk).create_authorization_url(
        talk.document.authorization_endpoint,
        state=attempt.state,
        code_verifier=attempt.verifier,
        nonce=attempt.nonce,
        max_age=_MAX_AGE_SECONDS,
    )
    return str(url)


async def exchange(talk: Talk, attempt: Attempt, code: str, now: datetime) -> Identity:
    """Whom a code stands for; IssuerFailed, BadIdToken."""
    told = await _tokens(talk, attempt, code)
    text = told.get("id_token")
    if not isinstance(text, str):
        raise BadIdToken("there is none")
    expected = Expected(talk.issuer.url, talk.issuer.client_id, attempt.nonce, now)
    keys = await talk.issuers.keys(talk.tenant_id, talk.document)
    try:
        identity = check_id_token(text, keys, expected)
    except UnknownKey:
        keys = await talk.issuers.keys(talk.tenant_id, talk.document, is_missing=True)
        identity = check_id_token(text, keys, expected)
    if talk.issuer.groups_claim not in identity.claims:
        await _add_userinfo(talk, identity, told.get("access_token"))
    return identity


async def _tokens(talk: Talk, attempt: Attempt, code: str) -> dict[str, object]:
    try:
        async with asyncio.timeout(CALL_SECONDS_MAX), _client(talk) as client:
            told = await client.fetch_token(
                talk.document.token_endpoint,
                code=code,
                grant_type="authorization_code",
                code_verifier=attempt.verifier,
            )
    except OutboundRefused as error:
        raise IssuerFailed(error.message) from None
    except (AuthlibBaseError, httpx2.HTTPError, TimeoutError, ValueError) as error:
        raise IssuerFailed(f"It does not take the code: {type(error).__name__}.") from None
    if not isinstance(told, dict):
        raise IssuerFailed("It does not answer with tokens.")
    return dict(told)


async def _add_userinfo(talk: Talk, identity: Identity, token: object) -> None:
    """Some issuers tell groups only there. What it says is believed for the same subject alone."""
    if talk.document.userinfo_endpoint is None or not isinstance(token, str):
        return
    told = await fetch_json(talk.issuers.transport(), talk.document.userinfo_endpoint, token)
    if not isinstance(told, dict) or told.get("sub") != identity.subject:
        raise BadIdToken("what the issuer says beside it is of somebody else")
    for name, value in told.items():
        identity.claims.setdefault(name, value)
