"""Every error as a problem document, and a request id on every answer."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kit.ids import Kind, new_uuid, show
from app.kit.problems import MEDIA_TYPE, Problem

_log = logging.getLogger(__name__)
_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def handle_errors(app: FastAPI) -> None:
    """Give the application its handlers."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Identify)


class Identify:
    """Outermost: gives each request an id, and is the last line: no trace ever reaches a user."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        now = scope["app"].state.tools.clock.now()
        request_id = scope.setdefault("state", {})["request_id"] = show(Kind.REQUEST, new_uuid(now))
        has_begun = False

        async def identified(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message)["request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, identified)
        except ClientDisconnect:
            return  # nobody is there to be told anything
        except Exception as error:
            _log.exception("request failed", extra={"request_id": request_id}, exc_info=error)
            if has_begun:
                raise
            problem = Problem("internal", hint="Tell us the request's id.")
            await _answer(Request(scope), problem)(scope, receive, identified)


def _answer(request: Request, problem: Problem) -> JSONResponse:
    response = JSONResponse(
        problem.body(request.state.request_id), problem.kind.status, media_type=MEDIA_TYPE
    )
    if problem.kind.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if problem.kind.status in (429, 503):
        response.headers["retry-after"] = "2"
    if problem.kind.status == 408:
        response.headers["connection"] = "close"  # the rest of it may still come
    return response


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [
        {"field": ".".join(map(str, found["loc"])), "message": found["msg"]}
        for found in error.errors()
    ]
    if any(found["type"] == "json_invalid" for found in error.errors()):
        return _answer(request, Problem("bad_request", "The body is not valid JSON."))
    return _answer(
        request,
        Problem("invalid_fields", hint="Mend the fields that are listed.", errors=fields),
    )


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem(_BY_STATUS.get(error.status_code, "bad_request"))
    return _answer(request, problem)
