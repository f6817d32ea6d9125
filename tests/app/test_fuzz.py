"""The whole API against values made from its own description: no 5xx, nothing undocumented."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.kit.problems import MEDIA_TYPE, Problem
from tests.app.service import Service
from tests.app.test_isolation import PROVIDERS, World, make_world

pytestmark = pytest.mark.anyio
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
#: Ends a stream at once.
_QUERIES = {"/v1/events:stream": {"seconds": 0}}


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a port of its own. It has a loop and a thread of its own as well."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@dataclass
class Fuzz:
    """Calls of one operation after the other."""

    world: World
    base: str
    calls: int = 0

    def call(self, case: Any) -> None:
        """Call with a case, every other time on objects that are there; raises what is wrong."""
        self.calls += 1
        caller = self.world.service.provider if "/provider/" in case.path else self.world.own
        if self.calls % 2:
            ids = {**PROVIDERS, **self.world.own_ids}
            case.path_parameters = {name: ids[name] for name in case.path_parameters or {}}
        case.query = {**(case.query or {}), **_QUERIES.get(case.path, {})}
        headers = {"authorization": f"Bearer {caller.token}"}
        answer = case.call(base_url=self.base, headers=headers, timeout=60)
        case.validate_response(answer, checks=_CHECKS)
        if answer.status_code >= 400:
            assert MEDIA_TYPE in answer.headers["content-type"][0]

    def run(self, examples: int, only: set[str] | None = None) -> dict[str, str]:
        """Call every operation, or those of some paths; what was wrong with which."""
        schema = schemathesis.openapi.from_dict(self.world.service.app.openapi())
        limits = settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        wrong: dict[str, str] = {}
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            if only is not None and operation.path not in only:
                continue
            ask = limits(given(case=operation.as_strategy())(lambda case: self.call(case)))
            try:
                ask()
            except (Exception, FailureGroup) as error:  # noqa: BLE001 - each is told
                wrong[operation.label] = f"{type(error).__name__}: {error}"[:2000]
        return wrong


async def _fuzz(service: Service, examples: int) -> None:
    world = await make_world(service)
    await service.tools.database.close()  # the server's loop makes connections of its own
    with served(service.app) as base:
        fuzz = Fuzz(world, base)
        wrong = fuzz.run(examples)
    await service.tools.database.close()
    assert fuzz.calls >= examples * 40
    assert not wrong, "\n\n".join(f"{name}: {what}" for name, what in wrong.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_operation_answers_what_it_does_not_say(service: Service) -> None:
    await _fuzz(service, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_control_a_planted_defect_and_an_undocumented_answer_are_found(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("planted")

    async def undocumented(*_: Any, **__: Any) -> Any:
        raise Problem("last_data_node")

    monkeypatch.setattr("app.sites.endpoints.list_page", broken)
    monkeypatch.setattr("app.users.endpoints.list_page", undocumented)
    world = await make_world(service)
    await service.tools.database.close()
    with served(service.app) as base:
        wrong = Fuzz(world, base).run(1, {"/v1/sites", "/v1/users", "/v1/hosts"})
    await service.tools.database.close()
    assert set(wrong) == {"GET /v1/sites", "GET /v1/users"}, wrong


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_no_operation_answers_what_it_does_not_say_for_long(service: Service) -> None:
    await _fuzz(service, 100)
