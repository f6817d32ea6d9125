"""A document of an issuer, through the guard. Loaded when the first one is fetched."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2

from app.oidc.documents import CALL_SECONDS_MAX, IssuerFailed
from app.outbound.guard import GuardedTransport
from app.outbound.policy import STEP_SECONDS_MAX, OutboundRefused


async def fetch_json(transport: GuardedTransport, url: str, token: str | None = None) -> Any:
    """A JSON document, with a bearer token if one is given; IssuerFailed."""
    headers = {"accept": "application/json"} | (
        {"authorization": f"Bearer {token}"} if token else {}
    )
    try:
        async with (
            asyncio.timeout(CALL_SECONDS_MAX),
            httpx2.AsyncClient(
                transport=transport, trust_env=False, timeout=STEP_SECONDS_MAX
            ) as client,
        ):
            answer = await client.get(url, headers=headers)
    except OutboundRefused as error:
        raise IssuerFailed(error.message) from None
    except (httpx2.HTTPError, TimeoutError) as error:
        raise IssuerFailed(f"It does not answer: {type(error).__name__}.") from None
    if answer.status_code != 200:
        raise IssuerFailed(f"It answers with status {answer.status_code}.")
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError):
        raise IssuerFailed("Its answer is not JSON.") from None
