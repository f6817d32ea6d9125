"""Which problems a route can answer, read from its code: no list beside it can fall behind.

A function names the functions that it calls and the codes that it raises; both are in its compiled
form. Following the names of this project from an endpoint gives every code that it can come to. A
branch that a route never takes counts too: the list may be longer than what happens, never shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from inspect import unwrap
from types import CodeType, FunctionType, ModuleType
from typing import Any

from app.events.hub import EventHub
from app.keys.port import KeyMissing, KeyRefused, KeyServiceAway
from app.kit.problems import CATALOGUE, Problem
from app.kit.transitions import Transitions

_OURS = "app."
#: The key service is called through its port, which names no function; so is the hub, below.
_OF_KEYS = frozenset({kind.named for kind in (KeyRefused, KeyMissing, KeyServiceAway)})


def reachable_codes(start: Callable[..., Any]) -> frozenset[str]:
    """Codes of the catalogue that a call of this function may end with."""
    return frozenset().union(*(_read(function)[0] for function in _reached(start)))


def mentions(start: Callable[..., Any], name: str) -> bool:
    """Whether this function, or one of this project that it calls, uses the name."""
    codes = (code for function in _reached(start) for code in _nested(function.__code__))
    return any(name in code.co_names for code in codes)


def _reached(start: Callable[..., Any]) -> set[FunctionType]:
    seen: set[FunctionType] = set()
    waiting = list(_functions(start))
    while waiting:
        function = waiting.pop()
        if function not in seen:
            seen.add(function)
            waiting += _read(function)[1]
    return seen


@cache
def _read(function: FunctionType) -> tuple[frozenset[str], tuple[FunctionType, ...]]:
    raised: set[str] = set()
    called: list[FunctionType] = []
    for code in _nested(function.__code__):
        if "Problem" in code.co_names or _is_of_problem(function):
            raised |= {text for text in code.co_consts if isinstance(text, str)} & set(CATALOGUE)
        if {"tools", "keys"} <= set(code.co_names):
            raised |= _OF_KEYS
        if "hub" in code.co_names:
            called += _functions(EventHub)
        for value in _values(function, code):
            called += _functions(value)
    return frozenset(raised), tuple(called)


def _is_of_problem(function: FunctionType) -> bool:
    """Whether it belongs to a kind of Problem, which names its code without naming Problem."""
    owner = function.__globals__.get(function.__qualname__.partition(".")[0])
    return isinstance(owner, type) and issubclass(owner, Problem)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _nested(value)


def _values(function: FunctionType, code: CodeType) -> Iterator[Any]:
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.startswith(_OURS):
            yield from (getattr(value, inner, None) for inner in code.co_names)
        else:
            yield value


def _functions(value: Any) -> Iterator[FunctionType]:
    if isinstance(value, FunctionType):
        inner = unwrap(value)
        if inner is not value:
            yield from _functions(inner)  # a function, or a class that is made on the event loop
        elif value.__module__.startswith(_OURS):
            yield value
    elif isinstance(value, type) and value.__module__.startswith(_OURS):
        yield from (
            unwrap(inner) for inner in vars(value).values() if isinstance(inner, FunctionType)
        )
    elif isinstance(value, Transitions):
        yield from _functions(Transitions)
    elif callable(value) and not isinstance(value, type):
        yield from _functions(type(value))
