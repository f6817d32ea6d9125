"""What `/openapi.json` says beyond the schemas: who may call, every problem, an example of each.

One place for all routes, so that none can be without: the codes come from the routes' own code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.http.examples import Schema, example_of
from app.http.idempotency import MUTATING
from app.http.reachable import mentions, reachable_codes
from app.http.routing import ProviderRoute, TenantRoute
from app.http.schemas import ProblemDocument
from app.kit.problems import CATALOGUE, MEDIA_TYPE

LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
CONTACT = {"name": "Whoever runs this deployment"}
SERVERS = [{"url": "/", "description": "This deployment."}]
_TAGS = {
    "tenant": "The organisation that the caller belongs to.",
    "sites": "Places with hypervisors.",
    "pools": "Machines of the provider's on which the tenant's may run.",
    "machines": "Virtual machines, as hosts report them.",
    "service-profiles": "Settings that several groups share.",
    "groups": "Machines that are protected and recovered together.",
    "checkpoints": "Moments that a group can go back to.",
    "restores": "Disks brought back from a moment.",
    "operations": "What takes time: its progress and its outcome.",
    "alerts": "What somebody should look at.",
    "hosts": "Hypervisor hosts and how they come in.",
    "users": "People, and how they log in.",
    "issuer": "Where the tenant's people log in, if not with local accounts.",
    "api-keys": "Credentials of machines.",
    "events": "What happened, in order, and the audit log.",
    "keys": "The keys that journals are sealed with.",
    "provider": "For who runs the deployment.",
    "data-nodes": "Machines that receive, keep and give back.",
    "provider-entries": "Each time that the provider's staff came into the tenant.",
    "service": "The service itself.",
}
TAGS = [{"name": name, "description": text} for name, text in _TAGS.items()]
_SECURITY = {
    "tenant": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, a session, an invitation or a join token of a tenant.",
    },
    "provider": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of the provider's staff, or a data node's join token.",
    },
}
#: What routes without a caller may answer.
_OF_PUBLIC = {"ready": {"database_unavailable"}}
_REQUEST_ID = "req_01j8ed3z2eff2e9mrz1vkd5k27"


def describe(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Complete the application's description of itself. The routers are its routes' owners."""
    routes = {route.name: route for router in routers for route in _of_api(router.routes)}
    plain = app.openapi

    @cache
    def complete() -> dict[str, Any]:
        document = plain()
        components = document["components"]
        schemas: dict[str, Schema] = components["schemas"]
        schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
        components["securitySchemes"] = _SECURITY
        answers: dict[str, Any] = components.setdefault("responses", {})
        for methods in document["paths"].values():
            for method, operation in methods.items():
                route = routes.get(operation["operationId"])
                _describe(operation, method.upper(), route, schemas)
                codes = sorted(_codes(operation, method.upper(), route))
                operation["responses"] |= _problems(codes, answers)
        document["tags"] = [tag for tag in TAGS if f"'{tag['name']}'" in str(document["paths"])]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    app.openapi = complete  # type: ignore[method-assign]


def _of_api(routes: Iterable[BaseRoute]) -> Iterator[APIRoute]:
    return (route for route in routes if isinstance(route, APIRoute))


def _describe(
    operation: dict[str, Any], method: str, route: APIRoute | None, schemas: dict[str, Schema]
) -> None:
    operation["security"] = _security(route)
    for parameter in operation.get("parameters", ()):
        parameter["example"] = example_of(parameter["schema"], schemas, parameter["name"])
        parameter.setdefault("description", _path_text(parameter["name"]))
    if _takes_key(route, method):
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    if route is not None and mentions(route.endpoint, "check_etag"):
        operation.setdefault("parameters", []).append(_IF_MATCH)
    contents = [operation.get("requestBody", {}).get("content", {})]
    contents += [answer.get("content", {}) for answer in operation["responses"].values()]
    for content in contents:
        for kind, media in content.items():
            if kind == "application/json":
                media["example"] = example_of(media["schema"], schemas)
    operation["responses"] = {
        status: answer for status, answer in operation["responses"].items() if status[0] in "23"
    }


def _takes_key(route: APIRoute | None, method: str) -> bool:
    if isinstance(route, ProviderRoute):
        return method in MUTATING and route.takes_key
    return method in MUTATING and isinstance(route, TenantRoute)


def _security(route: APIRoute | None) -> list[dict[str, list[str]]]:
    if isinstance(route, ProviderRoute):
        return [{"provider": []}]
    return [{"tenant": []}] if isinstance(route, TenantRoute) and route.has_bearer else []


def _codes(operation: dict[str, Any], method: str, route: APIRoute | None) -> set[str]:
    codes = {"internal"}
    if route is None:
        return codes | _OF_PUBLIC.get(operation["operationId"], set())
    codes |= reachable_codes(route.endpoint) | {"not_authenticated", "database_unavailable"}
    # A body is read before anything else, whether the route wants one or not.
    codes |= {"bad_request", "body_too_large", "body_too_deep", "unsupported_media_type"}
    codes |= {"request_timeout", "too_many_requests"}
    for dependency in route.dependant.dependencies:
        assert dependency.call is not None
        codes |= reachable_codes(dependency.call)
    if isinstance(route, TenantRoute | ProviderRoute):
        codes |= reachable_codes(type(route).credential)
        codes |= reachable_codes(type(route).authenticate)
    parameters = operation.get("parameters", ())
    if "requestBody" in operation or any(p["in"] == "query" for p in parameters):
        codes.add("invalid_fields")
    if any(parameter["in"] == "path" for parameter in parameters):
        codes.add("not_found")
    if _takes_key(route, method):
        codes |= {"request_in_progress", "idempotency_key_reused"}
        codes |= {"outcome_unknown"} if isinstance(route, ProviderRoute) else set()
        if mentions(route.endpoint, "shows_secret"):
            codes.add("secret_already_shown")
    return codes


def _problems(codes: list[str], answers: dict[str, Any]) -> dict[str, Any]:
    """References to answers, one for each set of codes, which are entered in `answers`."""
    found: dict[str, Any] = {}
    for status in sorted({CATALOGUE[code].status for code in codes}):
        here = [code for code in codes if CATALOGUE[code].status == status]
        name = ".".join(here)
        answers.setdefault(name, _answer(here))
        found[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return found


def _answer(codes: list[str]) -> dict[str, Any]:
    schema = {
        "allOf": [{"$ref": "#/components/schemas/ProblemDocument"}],
        "properties": {"code": {"enum": codes}},
    }
    examples = {code: {"value": _problem(code)} for code in codes}
    return {
        "description": " ".join(f"`{code}`: {CATALOGUE[code].title}" for code in codes),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }


def _problem(code: str) -> dict[str, Any]:
    kind = CATALOGUE[code]
    return {
        "type": f"/v1/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.title,
        "code": code,
        "hint": "",
        "retryable": kind.retryable,
        "request_id": _REQUEST_ID,
    }


def _path_text(name: str) -> str:
    return f"The {name.removesuffix('_id').replace('_', ' ')}'s identifier."


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A repeat with the same key has no second effect and the first answer.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    "example": "0b8f8a52-6f0e-4f5c-9d0a-3c3d0a6f9f11",
}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag that was read, or `*`. Its absence is answered with 428.",
    "schema": {"type": "string", "pattern": '^(\\*|"[0-9]+")$'},
    "example": '"1"',
}
