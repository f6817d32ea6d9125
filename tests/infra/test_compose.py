"""docker-compose.yml by the real parser: each process of ours exists and is told enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.dsm.process import DsmSettings
from app.embedded.setup import SetupSettings
from app.http.process import ApiSettings
from app.keys.process import KeysSettings
from app.kit.settings import Settings, read_settings
from tests.architecture.sources import ROOT
from workers.supervisor.command import read_settings as read_node_settings
from workers.tasks.runner import WorkerSettings

COMPOSE = Path(sys.executable).with_name("docker-compose")
_TOLD = {
    "POSTGRES_PASSWORD": "p",
    "S3_ACCESS_KEY": "a",
    "S3_SECRET_KEY": "s",
    "HOLDFAST_NAME": "holdfast.example",
}


def parse(file: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    words: list[str | Path] = [
        "--project-directory",
        ROOT,
        "--profile",
        "data",
        "config",
        "--format",
        "json",
    ]
    return subprocess.run(
        [COMPOSE, "--file", file, *words],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **_TOLD, **changed},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    done = parse(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in services.items() if one["image"] == "holdfast:local"}


def test_control_the_parser_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(text.replace("restart: unless-stopped", "restarts: sometimes", 1))
    assert parse(broken).returncode != 0


def test_nothing_starts_without_its_passwords() -> None:
    for name in _TOLD:
        done = parse(ROOT / "docker-compose.yml", **{name: ""})
        assert done.returncode != 0
        assert name in done.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("api", ApiSettings),
        ("dsm", DsmSettings),
        ("keys", KeysSettings),
        ("setup", SetupSettings),
        ("worker", WorkerSettings),
    ],
)
def test_each_process_is_told_what_it_needs_and_nothing_it_does_not_know(
    services: dict[str, Any], name: str, kind: type[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        variable: value
        for variable, value in services[name]["environment"].items()
        if variable.startswith("HOLDFAST_")
    }
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)
    read_settings(kind)
    shared = set(services["worker"]["environment"])
    known = {f"HOLDFAST_{field.upper()}" for field in kind.model_fields}
    assert set(told) - known <= shared


def test_a_data_node_is_told_what_it_needs(services: dict[str, Any]) -> None:
    settings = read_node_settings(services["datanode"]["environment"])
    assert settings.token_file is not None
    assert settings.control_doors == (("holdfast.example", 7444),)


def test_each_process_is_a_command(services: dict[str, Any]) -> None:
    for name, service in ours(services).items():
        command = [Path(sys.executable).with_name("holdfast"), *service["command"], "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (name, done.stderr)


def test_our_containers_have_no_rights_that_they_do_not_need(services: dict[str, Any]) -> None:
    for name, service in ours(services).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert "privileged" not in service, name


def test_the_key_service_sees_no_database_and_no_store(services: dict[str, Any]) -> None:
    told = services["keys"]["environment"]
    assert not {name for name in told if "DATABASE" in name or "STORE" in name or "AWS" in name}
    others = [one for name, one in ours(services).items() if name not in ("keys",)]
    assert not any("/keys" in volume["target"] for one in others for volume in one["volumes"])
