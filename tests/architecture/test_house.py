"""The root files agree with each other: versions, dependencies, locks, verbs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.architecture import sources

LOCKS = ["agent", "runtime", "dev", "fuzz"]


def _project(path: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(sources.text_of(Path(path)))["project"]
    return project


def _wanted(name: str) -> set[str]:
    lines = sources.text_of(Path(f"infra/requirements/{name}.in")).splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith(("#", "-r"))}


def _locked(name: str) -> dict[str, str]:
    text = sources.text_of(Path(f"infra/requirements/{name}.lock"))
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", text, flags=re.MULTILINE))


def test_both_distributions_have_one_version() -> None:
    whole, agent = _project("pyproject.toml"), _project("host_agent/pyproject.toml")
    assert whole["version"] == agent["version"]
    assert f"holdfast-agent=={agent['version']}" in whole["dependencies"]
    assert f'__version__ = "{agent["version"]}"' in sources.text_of(Path("host_agent/__init__.py"))


def test_requirements_equal_what_the_projects_declare() -> None:
    agent = set(_project("host_agent/pyproject.toml")["dependencies"])
    whole = set(_project("pyproject.toml")["dependencies"])
    assert agent == _wanted("agent")
    own = {need for need in whole if not need.startswith("holdfast-agent")}
    assert own == _wanted("agent") | _wanted("runtime")


@pytest.mark.parametrize("name", LOCKS)
def test_lock_satisfies_what_is_wanted(name: str) -> None:
    locked = _locked(name)
    for line in _wanted(name):
        need = Requirement(line)
        assert need.name in locked, f"{need.name} is not in {name}.lock; run `make locks`"
        assert need.specifier.contains(locked[need.name]), f"{need} against {locked[need.name]}"


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_hashes_and_no_addresses(name: str) -> None:
    text = sources.text_of(Path(f"infra/requirements/{name}.lock"))
    assert "://" not in text
    assert "--index" not in text
    for block in re.split(r"\n(?=[a-z])", text.strip()):
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_larger_locks_agree_with_smaller_ones() -> None:
    agent, runtime, dev = _locked("agent"), _locked("runtime"), _locked("dev")
    assert agent.items() <= runtime.items() <= dev.items()


def test_every_verb_says_what_it_does() -> None:
    makefile = sources.text_of(Path("Makefile"))
    verbs = set(re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, flags=re.MULTILINE))
    told = set(re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.MULTILINE))
    assert verbs
    assert verbs == told


@pytest.mark.parametrize(
    "path", [path for path in sources.tracked() if path.suffix == ".md"], ids=str
)
def test_documents_name_verbs_that_exist(path: Path) -> None:
    makefile = sources.text_of(Path("Makefile"))
    verbs = set(re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^ *\$? ?)make ([a-z-]+)", sources.text_of(path), re.MULTILINE))
    assert named <= verbs


@pytest.mark.parametrize(
    "path", [path for path in sources.tracked() if path.suffix == ".md"], ids=str
)
def test_documents_link_to_files_that_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", sources.text_of(path)):
        assert (sources.ROOT / path.parent / target).exists(), target


def test_apt_packages_say_why() -> None:
    for line in sources.text_of(Path("infra/apt.txt")).splitlines():
        if line.strip() and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9.+-]+ +# \S.*", line), line
