"""The tidy rules as plain functions from text to complaints, so that they can be tested."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTION_LINES_MAX = 60
RUST_FUNCTION_LINES_MAX = 80
FILE_LINES_MAX = 500
PARAMETERS_MAX = 5
# How far an exception may lie above what it excepts before its entry has to follow.
SLACK = 40

AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Size:
    """How large a named thing is, in the unit of its budget."""

    name: str
    value: int


def functions(tree: ast.Module) -> Iterator[tuple[str, AnyFunction]]:
    """Every function with its dotted name inside the file."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, AnyFunction]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(tree, "")


def python_function_lines(tree: ast.Module) -> Iterator[Size]:
    """Lines of each function without its docstring: explaining is never too long."""
    for name, node in functions(tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
        yield Size(name, lines)


def python_parameters(tree: ast.Module) -> Iterator[Size]:
    """Parameters of each function, without self and cls."""
    for name, node in functions(tree):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        yield Size(name, sum(argument.arg not in {"self", "cls"} for argument in given))


_RUST_FN = re.compile(
    r"^(\s*)(?:pub(?:\([a-z]+\))? )?(?:const |async |unsafe |extern \"C\" )*fn (\w+)"
)


def rust_function_lines(text: str) -> Iterator[Size]:
    """Lines of each Rust function; relies on rustfmt's indentation."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        found = _RUST_FN.match(line)
        if found is None:
            continue
        closing = found[1] + "}"
        for end in range(start, len(lines)):
            if lines[end] == closing or (end == start and line.rstrip().endswith(("}", ";"))):
                yield Size(found[2], end - start + 1)
                break


def rust_without_tests(text: str) -> str:
    """The text before a file's test module."""
    return re.split(r"^#\[cfg\(test\)\]\nmod ", text, maxsplit=1, flags=re.MULTILINE)[0]


def rust_code(text: str) -> str:
    """The text with comments and strings blanked, line by line."""
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def rust_unsafe_lines(text: str) -> list[int]:
    """Numbers of the lines that use `unsafe`."""
    code = rust_code(text).splitlines()
    return [number for number, line in enumerate(code, 1) if re.search(r"\bunsafe\b", line)]


def rust_unexplained_unsafe(text: str) -> list[int]:
    """Numbers of the lines that open an unsafe block or impl with no SAFETY comment near above."""
    lines = text.splitlines()
    return [
        number
        for number in rust_unsafe_lines(text)
        if not re.search(r"\bunsafe (?:extern|fn)\b", lines[number - 1])
        if not any("SAFETY" in line for line in lines[max(0, number - 8) : number])
    ]


def rust_unwrap_lines(text: str) -> list[int]:
    """Numbers of the lines outside tests that unwrap."""
    code = rust_code(rust_without_tests(text)).splitlines()
    return [number for number, line in enumerate(code, 1) if ".unwrap()" in line]


_LOGGERS = {"log", "logger", "logging", "_log", "_logger", "print"}


def _only_speaks(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    called = statement.value.func
    while isinstance(called, ast.Attribute):
        called = called.value
    return isinstance(called, ast.Name) and called.id in _LOGGERS


def swallowed_errors(tree: ast.Module) -> list[int]:
    """Lines of handlers that are bare, or that log the error and go on."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None or all(_only_speaks(statement) for statement in node.body):
            lines.append(node.lineno)
    return lines


def word_pattern(words: list[str]) -> re.Pattern[str]:
    """Finds any of the words at their own borders; one in lower case, whatever the text's case."""
    alternatives = []
    for word in words:
        escaped = re.escape(word)
        before = r"\b" if word[0].isalnum() else ""
        after = r"\b" if word[-1].isalnum() else ""
        any_case = "(?i:" if word == word.lower() else "(?:"
        alternatives.append(f"{before}{any_case}{escaped}){after}")
    return re.compile("|".join(alternatives))


def hits(pattern: re.Pattern[str], text: str) -> list[tuple[int, str]]:
    """Line numbers and what was found there."""
    return [
        (number, found[0])
        for number, line in enumerate(text.splitlines(), 1)
        for found in [pattern.search(line)]
        if found is not None
    ]


def over_budget(sizes: dict[str, int], budget: int, allowed: dict[str, int]) -> list[str]:
    """Complaints: what crosses its budget, and exceptions that are no longer needed."""
    complaints = []
    for name, value in sorted(sizes.items()):
        limit = allowed.get(name, budget)
        if value > limit:
            complaints.append(f"{name}: {value}, at most {limit}")
    for name, limit in sorted(allowed.items()):
        value = sizes.get(name, 0)
        if value <= budget:
            complaints.append(f"{name}: within the budget now; take it off the list")
        elif value < limit - SLACK:
            complaints.append(f"{name}: {value} now; lower its entry from {limit}")
    return complaints
