"""What a route depends on is worked out on the event loop, never on a thread."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import iscoroutinefunction

import pytest
from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from app.api import ROUTERS


def _on_threads(dependant: Dependant) -> Iterator[object]:
    for inner in dependant.dependencies:
        call = inner.call
        if not (iscoroutinefunction(call) or iscoroutinefunction(getattr(call, "__call__", None))):  # noqa: B004
            yield call
        yield from _on_threads(inner)


def _found(routers: tuple[APIRouter, ...]) -> list[object]:
    routes = [route for router in routers for route in router.routes]
    assert routes
    return [
        (route.path, call)
        for route in routes
        if isinstance(route, APIRoute)
        for call in _on_threads(route.dependant)
    ]


def test_no_dependency_goes_to_a_thread() -> None:
    assert _found(ROUTERS) == []


@pytest.mark.parametrize("kind", ["function", "class"])
def test_one_that_would_is_seen(kind: str) -> None:
    class Made:
        def __init__(self, name: str = "") -> None:
            self.name = name

    def made(name: str = "") -> str:
        return name

    router = APIRouter()

    @router.get("/")
    async def endpoint(got: object = Depends(Made if kind == "class" else made)) -> None: ...

    assert len(_found((router,))) == 1
