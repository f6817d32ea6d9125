"""`/openapi.json`: valid, complete, free of a linter's warnings, and true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from app.http.reachable import reachable_codes
from app.kit.ids import Kind, parse
from app.kit.problems import CATALOGUE, MEDIA_TYPE
from app.sites import endpoints
from app.vpgs import endpoints as vpgs
from tests.app.service import Service

pytestmark = pytest.mark.anyio
Operation = dict[str, Any]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, Operation]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def contents(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from operation.get("requestBody", {}).get("content", {}).items()
    for answer in operation["responses"].values():
        yield from answer.get("content", {}).items()


def problems(document: dict[str, Any], operation: Operation) -> Iterator[tuple[str, list[str]]]:
    """Status and codes of each problem that an operation may answer."""
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            name = answer["$ref"].rsplit("/", 1)[1]
            found = document["components"]["responses"][name]
            yield status, list(found["content"][MEDIA_TYPE]["examples"])


def lint(document: dict[str, Any]) -> list[str]:
    """What the recommended rules of OpenAPI linters, and ours, find wrong."""
    found: list[str] = []
    info = document["info"]
    wanted = ("title", "version", "description", "license", "contact")
    found += [f"info has no {name}" for name in wanted if not info.get(name)]
    found += [] if document.get("servers") else ["no servers"]
    tags = [tag["name"] for tag in document["tags"]]
    found += [
        f"tag {tag['name']}: no description" for tag in document["tags"] if not tag["description"]
    ]
    seen: set[str] = set()
    for where, operation in operations(document):
        found += [f"{where}: {what}" for what in _lint_operation(where, operation, set(tags))]
        if operation["operationId"] in seen:
            found.append(f"{where}: operationId taken")
        seen.add(operation["operationId"])
        found += [f"{where}: {what}" for what in _lint_examples(document, operation)]
    for name, answer in document["components"]["responses"].items():
        found += [
            f"{name}: {what}" for what in _lint_examples(document, {"responses": {name: answer}})
        ]
    text = str(document)
    for name in document["components"]["schemas"]:
        if f"#/components/schemas/{name}'" not in text:
            found.append(f"component {name} is not used")
    return found


def _lint_operation(where: str, operation: Operation, tags: set[str]) -> Iterator[str]:
    summary = operation.get("summary", "")
    if not summary or summary.endswith(".") or len(summary) > 60:
        yield "summary"
    if not operation.get("description", "").strip():
        yield "no description"
    if not operation.get("tags") or not set(operation["tags"]) <= tags:
        yield "tags"
    if "security" not in operation:
        yield "security"
    named = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
    if named != set(re.findall(r"{(\w+)}", where)):
        yield "path parameters"
    for parameter in operation.get("parameters", ()):
        if not parameter.get("description") or "example" not in parameter:
            yield f"parameter {parameter['name']}"
    statuses = set(operation["responses"])
    wanted = {"500"} | ({"401", "503", "400"} if operation["security"] else set())
    if not any(status[0] in "23" for status in statuses) or not wanted <= statuses:
        yield f"answers {sorted(statuses)}"


def _lint_examples(document: dict[str, Any], operation: Operation) -> Iterator[str]:
    for kind, media in contents(operation):
        examples = [one["value"] for one in media.get("examples", {}).values()]
        examples += [media["example"]] if "example" in media else []
        if not examples and kind != "text/event-stream":
            yield f"{kind}: no example"
        parts = {"components": document["components"]}
        validator = Draft202012Validator({**media["schema"], **parts})
        for example in examples:
            for error in validator.iter_errors(example):
                yield f"example: {error.json_path}: {error.message}"


async def test_the_description_has_no_warning(service: Service) -> None:
    document = (await service.nobody.get("/openapi.json")).json()
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    assert lint(document) == []
    assert len(list(operations(document))) > 80


async def test_the_linter_sees_what_is_missing(service: Service) -> None:
    document = (await service.nobody.get("/openapi.json")).json()
    sites = document["paths"]["/v1/sites"]["post"]
    sites["requestBody"]["content"]["application/json"]["example"]["territory"] = "nowhere"
    sites["summary"] = ""
    del sites["responses"]["401"]
    document["components"]["schemas"]["Unused"] = {"type": "string"}
    found = lint(document)
    assert len(found) == 4, found


async def test_every_problem_of_the_description_is_of_the_catalogue(service: Service) -> None:
    document = service.app.openapi()
    named = set()
    for _, operation in operations(document):
        for status, codes in problems(document, operation):
            assert all(str(CATALOGUE[code].status) == status for code in codes)
            named |= set(codes)
    # 405 is of paths, not of operations.
    assert named == set(CATALOGUE) - {"method_not_allowed"}


def test_codes_are_found_through_calls() -> None:
    assert "in_use" in reachable_codes(endpoints.delete_site)
    assert "in_use" not in reachable_codes(endpoints.list_sites)
    assert "illegal_transition" in reachable_codes(vpgs.force_sync_vpg)
    assert "illegal_transition" in reachable_codes(vpgs.pause_vpg)
    assert "illegal_transition" not in reachable_codes(endpoints.list_sites)


@pytest.mark.parametrize("path", ["/v1/sites", "/v1/provider/tenants", "/v1/login"])
async def test_bodies_that_nobody_means(service: Service, path: str) -> None:
    tenant = await service.make_tenant()
    caller = service.provider if "provider" in path else tenant
    deep = b"[" * 5_000 + b"]" * 5_000
    hidden = b'{"name": "' + b"[" * 500 + b'"}'
    headers = {"content-type": "application/json"}
    answers = {
        "large": await caller.call("POST", path, content=b" " * (10 << 20), headers=headers),
        "deep": await caller.call("POST", path, content=deep, headers=headers),
        "text": await caller.call("POST", path, content=b"a=1"),
        "brackets in a text": await caller.call("POST", path, content=hidden, headers=headers),
        "not UTF-8": await caller.call("POST", path, content=b'{"name": "\xff"}', headers=headers),
        "control": await caller.call(
            "POST", path, content=b'{"name": "a\\u0000b"}', headers=headers
        ),
        "surrogate": await caller.call(
            "POST", path, content=b'{"name": "\\ud800"}', headers=headers
        ),
    }
    codes = {name: answer.json()["code"] for name, answer in answers.items()}
    assert codes["large"] == "body_too_large"
    assert codes["deep"] == "body_too_deep"
    assert codes["text"] == "unsupported_media_type"
    for name in ("brackets in a text", "not UTF-8", "control", "surrogate"):
        assert codes[name] in ("invalid_fields", "bad_request"), name


async def test_one_stream_too_many_is_refused_before_it_begins(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await service.make_tenant()
    tenant_id = parse(Kind.TENANT, (await tenant.get("/v1/tenant")).json()["id"])
    monkeypatch.setattr("app.events.hub.STREAMS_MAX", 1)
    asked = {"after": 0, "seconds": 0}
    with service.app.state.hub.watching(tenant_id):
        answer = await tenant.get("/v1/events:stream", params=asked)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
    assert (await tenant.get("/v1/events:stream", params=asked)).status_code == 200
