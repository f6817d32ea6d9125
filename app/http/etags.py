"""ETags: which version of an object a client read, and means to change."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from app.kit.problems import Problem


def put_etag(response: Response, version: int) -> None:
    """Say which version the answer shows."""
    response.headers["etag"] = f'"{version}"'


def check_etag(request: Request, version: int) -> None:
    """Problem unless the request's If-Match names this version, or any."""
    wanted = request.headers.get("if-match")
    if wanted is None:
        raise Problem(
            "etag_required",
            "If-Match is missing.",
            hint="Read the object and send its ETag as If-Match.",
        )
    if wanted.strip() != "*" and f'"{version}"' not in (part.strip() for part in wanted.split(",")):
        raise Problem(
            "etag_mismatch", hint="Read the object again and repeat the change on what it is now."
        )
