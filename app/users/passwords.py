"""Passwords and one-time codes.

Argon2id with the library's defaults costs some 100 ms of a core, on purpose, beside the loop and at
most two at a time: whoever floods the login slows logins down and nothing else.
"""

from __future__ import annotations

import functools
import hmac
from datetime import datetime

import anyio
import pyotp
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

PASSWORD_LENGTH_MIN = 12
STEP_SECONDS = 30
_ISSUER = "Holdfast"
_hasher = PasswordHasher()
_limiter = anyio.CapacityLimiter(2)


async def hash_password(password: str) -> str:
    """Argon2id with its parameters and salt, as text."""
    return await anyio.to_thread.run_sync(_hasher.hash, password, limiter=_limiter)


async def is_password(password: str, kept: str | None) -> bool:
    """Whether it is the password; takes as long where none is kept, and says no."""
    found = await anyio.to_thread.run_sync(_verify, password, kept, limiter=_limiter)
    return found and kept is not None


@functools.cache
def _nobodys() -> str:
    """Compared with where there is no account, so that the answer takes as long."""
    return _hasher.hash("nobody has this password")


def _verify(password: str, kept: str | None) -> bool:
    # Made by whichever comes first, so that this tells nothing either.
    nobodys = _nobodys()
    try:
        return _hasher.verify(kept or nobodys, password)
    except (VerificationError, InvalidHashError):
        return False


def make_code_secret() -> str:
    """A new secret for one-time codes (RFC 6238), base 32."""
    return pyotp.random_base32()


def code_uri(secret: str, account: str) -> str:
    """What an authenticator scans."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=_ISSUER)


def step_of_code(secret: str, code: str, now: datetime, newest_used: int) -> int | None:
    """The step whose code this is: this one or the one before, later than `newest_used`; or None.

    A code works once, also within its 30 s.
    """
    current = int(now.timestamp()) // STEP_SECONDS
    generator = pyotp.TOTP(secret)
    for step in (current, current - 1):
        expected = generator.at(step * STEP_SECONDS)
        if step > newest_used and hmac.compare_digest(expected.encode(), code.encode()):
            return step
    return None
