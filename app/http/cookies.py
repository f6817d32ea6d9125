"""Sessions of browsers: a cookie that scripts cannot read and other sites cannot use."""

from __future__ import annotations

from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response

#: The prefix has browsers take it from this host alone, over TLS alone, for all of its paths.
_PREFIX = "__Host-holdfast-"
SESSION_COOKIE, LOGIN_COOKIE = f"{_PREFIX}session", f"{_PREFIX}login"
_READING = ("GET", "HEAD")


def put_cookie(response: Response, name: str, value: str, expires_at: datetime) -> None:
    """Have the browser keep it until then."""
    response.set_cookie(
        name, value, expires=expires_at, path="/", secure=True, httponly=True, samesite="lax"
    )


def drop_cookie(response: Response, name: str) -> None:
    """Have the browser forget it."""
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")


def session_of(request: Request) -> str:
    """The session's token that a browser sends; empty without one, and for a change that a page of
    another site would make.
    """
    token = request.cookies.get(SESSION_COOKIE, "")
    if request.method in _READING:
        return token
    origin, own = request.headers.get("origin"), request.app.state.tools.public_url
    return token if own and origin == own else ""
