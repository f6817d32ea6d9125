"""A login on its way: what the browser carries, sealed, until it comes back from the issuer.

Nothing is written when a login begins, so that beginning thousands costs nothing; what may be used
once is entered when it is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from app.database.sessions import TenantSession
from app.kit.sealing import Sealer
from app.models import UsedLogin

#: From the first redirect to the return from the issuer.
ATTEMPT_LIFETIME = timedelta(minutes=10)
#: From the return to the command that waits for it on the same machine.
HANDOFF_LIFETIME = timedelta(minutes=1)
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Waiting:
    """A command that waits beside the browser: its port, its state, the challenge of its secret."""

    port: int
    state: str
    challenge: str


@dataclass(frozen=True)
class Attempt:
    """A login that was begun. `version` is of the issuer's settings, `expires` in seconds."""

    state: str
    nonce: str
    verifier: str
    version: int
    expires: float
    waiting: Waiting | None


@dataclass(frozen=True)
class Handoff:
    """Somebody who came back from the issuer, for the command that waits. Works once."""

    id: str
    user: str
    version: int
    authenticated: float | None
    challenge: str
    expires: float


def make_attempt(version: int, now: datetime, waiting: Waiting | None) -> Attempt:
    """A new one, with secrets of its own."""
    state, nonce, verifier = (secrets.token_urlsafe(_SECRET_BYTES) for _ in range(3))
    return Attempt(state, nonce, verifier, version, (now + ATTEMPT_LIFETIME).timestamp(), waiting)


def challenge_of(verifier: str) -> str:
    """S256 of RFC 7636."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_challenge(verifier: str, challenge: str) -> bool:
    """Whether this is the secret behind a challenge."""
    return hmac.compare_digest(challenge_of(verifier), challenge)


def seal(sealer: Sealer, tenant_id: UUID, what: Attempt | Handoff) -> str:
    """As text for one tenant, that nobody else reads or changes."""
    body = json.dumps(asdict(what)).encode()
    sealed = sealer.seal(body, type(what).__name__, str(tenant_id))
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def open_attempt(sealer: Sealer, tenant_id: UUID, text: str, now: datetime) -> Attempt | None:
    """What was sealed for this tenant, if its time is not over."""
    fields = _open(sealer, tenant_id, text, Attempt)
    if fields is None:
        return None
    waiting = fields.pop("waiting")
    attempt = Attempt(**fields, waiting=None if waiting is None else Waiting(**waiting))
    return attempt if now.timestamp() < attempt.expires else None


def open_handoff(sealer: Sealer, tenant_id: UUID, text: str, now: datetime) -> Handoff | None:
    """What was sealed for this tenant, if its time is not over."""
    fields = _open(sealer, tenant_id, text, Handoff)
    handoff = None if fields is None else Handoff(**fields)
    return handoff if handoff is not None and now.timestamp() < handoff.expires else None


def _open(
    sealer: Sealer, tenant_id: UUID, text: str, kind: type[Attempt | Handoff]
) -> dict[str, Any] | None:
    try:
        sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        fields: dict[str, Any] = json.loads(sealer.open(sealed, kind.__name__, str(tenant_id)))
    except (binascii.Error, ValueError):
        return None
    return fields


async def use_once(
    session: TenantSession, sealer: Sealer, what: Attempt | Handoff, now: datetime
) -> bool:
    """Enter that it is used; False if it was. What would not work any more is forgotten."""
    secret = what.state if isinstance(what, Attempt) else what.id
    table = UsedLogin
    await session.orm.execute(
        delete(table).where(table.tenant_id == session.tenant_id, table.expires_at < now)
    )
    entered = await session.orm.execute(
        insert(table)
        .values(
            tenant_id=session.tenant_id,
            fingerprint=sealer.fingerprint("login", secret),
            expires_at=datetime.fromtimestamp(what.expires, now.tzinfo),
        )
        .on_conflict_do_nothing()
        .returning(table.fingerprint)
    )
    return entered.first() is not None
