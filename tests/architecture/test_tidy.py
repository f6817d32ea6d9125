"""The repository checks itself: sizes, words, unsafe code, swallowed errors."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.architecture import exceptions, rules, sources

DATA_PATH = ("host_agent/stream", "workers/ingest", "workers/journal", "workers/restore")
UNSAFE_HOME = "host_agent/tap/src/sys"

# Written in pieces, so that this file does not find itself.
FORBIDDEN_WORDS = [
    "TO" + "DO",
    "FIX" + "ME",
    "X" + "XX",
    "/wo" + "rk/",
    "/tm" + "p/",
    "py" + "pi.org",
    "python" + "hosted.org",
    "crates" + ".io",
    "npm" + "js.org",
    "deb.deb" + "ian.org",
    "chat" + "gpt",
    "copi" + "lot",
    "cla" + "ude",
    "anth" + "ropic",
    "language" + " model",
]
# Cargo itself writes its index's name into the lock.
WORDS_EXEMPT = {Path("host_agent/tap/Cargo.lock"), Path("host_agent/tap/fuzz/Cargo.lock")}


def _report(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


def test_python_functions_keep_their_budget() -> None:
    sizes = {
        f"{path}::{size.name}": size.value
        for path in sources.with_suffix(".py")
        for size in rules.python_function_lines(sources.tree_of(path))
    }
    assert sizes
    _report(rules.over_budget(sizes, rules.FUNCTION_LINES_MAX, exceptions.FUNCTION_LINES))


def test_python_parameters_keep_their_budget() -> None:
    sizes = {
        f"{path}::{size.name}": size.value
        for path in sources.with_suffix(".py")
        if path.parts[0] != "tests"
        for size in rules.python_parameters(sources.tree_of(path))
    }
    assert sizes
    _report(rules.over_budget(sizes, rules.PARAMETERS_MAX, exceptions.PARAMETERS))


def test_rust_functions_keep_their_budget() -> None:
    sizes = {
        f"{path}::{size.name}": size.value
        for path in sources.with_suffix(".rs")
        for size in rules.rust_function_lines(sources.text_of(path))
    }
    assert sizes
    allowed = exceptions.RUST_FUNCTION_LINES
    _report(rules.over_budget(sizes, rules.RUST_FUNCTION_LINES_MAX, allowed))


def test_files_keep_their_budget() -> None:
    sizes = {
        str(path): len(sources.text_of(path).splitlines()) for path in sources.with_suffix(".py")
    }
    for path in sources.with_suffix(".rs"):  # unit tests stand in the same file there
        sizes[str(path)] = len(rules.rust_without_tests(sources.text_of(path)).splitlines())
    _report(rules.over_budget(sizes, rules.FILE_LINES_MAX, exceptions.FILE_LINES))


def test_no_forbidden_words() -> None:
    pattern = rules.word_pattern(FORBIDDEN_WORDS)
    _report(
        [
            f"{path}:{number}: {word}"
            for path, text in sources.texts()
            if path not in WORDS_EXEMPT
            for number, word in rules.hits(pattern, text)
        ]
    )


def test_unsafe_rust_lives_in_one_module() -> None:
    files = sources.with_suffix(".rs")
    home = [path for path in files if path.as_posix().startswith(UNSAFE_HOME)]
    assert home
    _report(
        [
            f"{path}:{number}: unsafe belongs in {UNSAFE_HOME}"
            for path in files
            if path not in home
            for number in rules.rust_unsafe_lines(sources.text_of(path))
        ]
    )


def test_unsafe_rust_says_why_it_is_sound() -> None:
    _report(
        [
            f"{path}:{number}: unsafe without a SAFETY comment just above"
            for path in sources.with_suffix(".rs")
            for number in rules.rust_unexplained_unsafe(sources.text_of(path))
        ]
    )


def test_rust_does_not_unwrap_outside_tests() -> None:
    _report(
        [
            f"{path}:{number}: unwrap"
            for path in sources.with_suffix(".rs")
            if "tests" not in path.parts and path.stem not in {"testing", "tests"}
            for number in rules.rust_unwrap_lines(sources.text_of(path))
        ]
    )


def test_data_path_returns_its_errors() -> None:
    _report(
        [
            f"{path}:{line}: an error is returned, never logged and passed over"
            for path in sources.with_suffix(".py")
            if path.as_posix().startswith(DATA_PATH)
            for line in rules.swallowed_errors(sources.tree_of(path))
        ]
    )


def test_every_package_says_what_it_is() -> None:
    silent = [
        str(path)
        for path in sources.with_suffix(".py")
        if path.name == "__init__.py" and path.parts[0] in {"app", "workers", "host_agent"}
        if ast.get_docstring(sources.tree_of(path)) is None
    ]
    _report(silent)
