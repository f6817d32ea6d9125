"""The tidy rules find what they are for: each is shown something bad and something good."""

from __future__ import annotations

import ast
import textwrap

from tests.architecture import rules


def _tree(text: str) -> ast.Module:
    return ast.parse(textwrap.dedent(text))


def _sizes(found: object) -> dict[str, int]:
    return {size.name: size.value for size in found}  # type: ignore[attr-defined]


def test_function_lines_do_not_count_the_docstring() -> None:
    tree = _tree('''
        class Thing:
            async def act(self):
                """Says
                much."""
                first()
                second()
        ''')
    assert _sizes(rules.python_function_lines(tree)) == {"Thing.act": 3}


def test_nested_functions_are_found() -> None:
    tree = _tree("""
        def outer():
            if True:
                def inner():
                    pass
        """)
    assert set(_sizes(rules.python_function_lines(tree))) == {"outer", "outer.inner"}


def test_parameters_are_counted_without_self() -> None:
    tree = _tree("""
        class Thing:
            def act(self, a, /, b, *, c): ...
        """)
    assert _sizes(rules.python_parameters(tree)) == {"Thing.act": 3}


RUST = """\
impl Ring {
    pub(crate) fn free(&mut self) {
        let say = "unsafe";
        // unsafe
        self.go();
    }
    fn short(&self) -> u8 { 1 }
}

unsafe fn peek() {
    x.unwrap();
}

#[cfg(test)]
mod tests {
    fn probe() {
        y.unwrap();
    }
}
"""


def test_rust_functions_are_measured() -> None:
    assert _sizes(rules.rust_function_lines(RUST)) == {
        "free": 5,
        "short": 1,
        "peek": 3,
        "probe": 3,
    }


def test_unsafe_is_found_in_code_only() -> None:
    assert rules.rust_unsafe_lines(RUST) == [10]


def test_unexplained_unsafe_is_found() -> None:
    text = "fn a() {\n    // SAFETY: checked above\n    unsafe { go() }\n}" + "\n" * 9
    assert rules.rust_unexplained_unsafe(text + "fn b() {\n    unsafe { go() }\n}") == [14]


def test_unwrap_is_found_outside_tests_only() -> None:
    assert rules.rust_unwrap_lines(RUST) == [11]


def test_swallowed_errors_are_found() -> None:
    tree = _tree("""
        try:
            send()
        except OSError as error:
            log.warning("lost", error)
        try:
            send()
        except:
            raise
        try:
            send()
        except OSError as error:
            log.warning("again", error)
            raise
        """)
    assert rules.swallowed_errors(tree) == [4, 8]


def test_words_are_found_at_their_borders_only() -> None:
    pattern = rules.word_pattern(["cat", "/dog/", "COW"])
    assert rules.hits(pattern, "concatenate\na Cat here\nin/dog/house\ncow\na COW") == [
        (2, "Cat"),
        (3, "/dog/"),
        (5, "COW"),
    ]


def test_budget_ratchets_in_both_directions() -> None:
    sizes = {"grown": 70, "listed": 80, "mended": 10, "regrown": 86, "shrunk": 65}
    allowed = {"listed": 90, "mended": 90, "regrown": 85, "shrunk": 110}
    complaints = rules.over_budget(sizes, 60, allowed)
    names = ["grown", "regrown", "mended", "shrunk"]
    assert [complaint.split(":")[0] for complaint in complaints] == names
