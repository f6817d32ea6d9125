"""Two wheels from one tree: a host gets the agent and the tap, and nothing of the cloud side."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAP = ROOT / "host_agent/tap/target/release/holdfast-tap"
PYTHON_BUILD = [sys.executable, "-m", "build", "--quiet", "--wheel", "--no-isolation"]
PIP_INSTALL = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]


def _build(project: Path, into: Path, tap: Path) -> Path:
    subprocess.run(
        [*PYTHON_BUILD, "--outdir", str(into), str(project)],
        check=True,
        env={**os.environ, "HOLDFAST_TAP_BINARY": str(tap)},
    )
    [wheel] = into.glob("*.whl")
    return wheel


def _install(wheel: Path, into: Path) -> None:
    subprocess.run(
        [*PIP_INSTALL, "--target", str(into), str(wheel)],
        check=True,
    )


@pytest.fixture(scope="module")
def agent_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not TAP.exists():
        pytest.fail("the tap is not built; run `make tap`")
    return _build(ROOT / "host_agent", tmp_path_factory.mktemp("agent"), TAP)


@pytest.fixture(scope="module")
def holdfast_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(ROOT, tmp_path_factory.mktemp("holdfast"), TAP)


def test_agent_wheel_is_for_this_machine_and_any_python_3(agent_wheel: Path) -> None:
    assert agent_wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")


def test_agent_wheel_carries_the_tap_but_not_its_sources(agent_wheel: Path) -> None:
    names = zipfile.ZipFile(agent_wheel).namelist()
    assert any(name.endswith(".data/scripts/holdfast-tap") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("holdfast_agent-")} == {"host_agent"}
    assert not [
        name for name in names if "/tap/" in name or name.endswith((".rs", "hatch_build.py"))
    ]


def test_agent_wheel_has_every_module_of_the_agent(agent_wheel: Path) -> None:
    names = set(zipfile.ZipFile(agent_wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "host_agent").rglob("*.py")}
    assert modules - names == {"host_agent/hatch_build.py"}


def test_installed_tap_runs(agent_wheel: Path, tmp_path: Path) -> None:
    _install(agent_wheel, tmp_path)
    told = subprocess.run(
        [tmp_path / "bin/holdfast-tap", "--version"], check=True, capture_output=True, text=True
    )
    assert "0.1.0" in told.stdout


def test_agent_stands_alone(agent_wheel: Path, tmp_path: Path) -> None:
    _install(agent_wheel, tmp_path)
    # -P and another folder: this tree must not be found beside it; -S keeps the editable
    # installs' paths out, so the environment's libraries are named by hand.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    script = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}]
sys.path.append({site!r})
import importlib.util
import host_agent.wire.frame
assert host_agent.__file__.startswith({str(tmp_path)!r}), host_agent.__file__
assert importlib.util.find_spec("workers") is None
assert importlib.util.find_spec("app") is None
from host_agent.control.cli import main
sys.argv = ["holdfast-agent", "--help"]
main()
"""
    told = subprocess.run(
        [sys.executable, "-S", "-P", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    for word in ("run", "attach", "status", "checkpoint"):
        assert word in told.stdout


def test_holdfast_wheel_has_the_cloud_side_only(holdfast_wheel: Path) -> None:
    names = zipfile.ZipFile(holdfast_wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.startswith("holdfast-")} == {"app", "workers"}
    assert holdfast_wheel.name.endswith("-py3-none-any.whl")


def test_broken_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _build(ROOT / "host_agent", tmp_path, tmp_path / "absent")
