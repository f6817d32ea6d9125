"""The command line over the API, as an administrator types it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from host_agent.wire.keys import TenantKey
from infra.demo.processes import free_port
from tests.app.test_up import HOLDFAST, running, state_folder

pytestmark = pytest.mark.xdist_group("commands")


@dataclass(frozen=True)
class Terminal:
    """A user's home and the service that runs."""

    home: Path
    started: dict[str, Any]

    def run(self, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """One command."""
        environment = {**os.environ, "XDG_CONFIG_HOME": str(self.home), "COLUMNS": "200"}
        done = subprocess.run(
            [str(HOLDFAST), *words],
            input=typed,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def ask(self, *words: str, typed: str = "") -> dict[str, Any]:
        """One command with --json that succeeds."""
        done = self.run(*words, "--json", typed=typed)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def add_profile(self, name: str, token: str) -> None:
        """Keep a profile for this service."""
        api, root = self.started["url"], self.started["root_certificate"]
        words = ("--api", api, "--root-file", root, "--token-file", "-")
        self.ask("profile", "add", name, *words, typed=token)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with state_folder() as folder, running(folder, free_port()) as (_, started):
        terminal = Terminal(tmp_path_factory.mktemp("home"), started)
        terminal.add_profile("provider", Path(started["provider_key_file"]).read_text())
        made = terminal.ask("tenant", "create", "Acme")
        terminal.add_profile("acme", made["token"])
        yield terminal


def test_the_recovery_key_is_exported_into_a_private_file(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "acme.key"
    words = ("keys", "export-recovery", "--reason", "for the safe", "--output", str(file))
    refused = terminal.run(*words, "--tenant-name", "acme", "--profile", "acme", "--json")
    assert json.loads(refused.stdout)["error"] == "name_not_confirmed"
    assert not file.exists()
    made = terminal.ask(*words, "--tenant-name", "Acme", "--profile", "acme")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert TenantKey.parse(file.read_bytes()).id == made["id"]
    again = terminal.run(*words, "--tenant-name", "Acme", "--profile", "acme", "--json")
    assert json.loads(again.stdout)["error"] == "bad_key_file"


def test_an_administrator_s_first_minutes(terminal: Terminal) -> None:
    site = terminal.ask("site", "create", "Zürich", "--territory", "CH")
    assert "Zürich" in terminal.run("site", "list").stdout
    assert terminal.ask("site", "list")["items"][0]["id"] == site["id"]
    joins = terminal.ask("host", "join", "hypervisor 1")
    assert joins["token"].startswith("hfj_")
    other = terminal.ask("site", "create", "Basel", "--territory", "CH")
    assert terminal.ask("host", "join", "hypervisor 2", "--site", "Basel")["site_id"] == other["id"]
    unknown = terminal.run("host", "join", "hypervisor 3", "--site", "Atlantis", "--json")
    assert json.loads(unknown.stdout)["error"] == "bad_word"
    assert terminal.run("host", "list").stdout.strip() == "none"
    key = terminal.ask("api-key", "create", "ci", "--role", "viewer")
    terminal.add_profile("viewer", key["token"])
    denied = terminal.run("site", "delete", site["id"], "--yes", "--json")
    assert (denied.returncode, json.loads(denied.stdout)["error"]) == (1, "privilege_missing")
    terminal.ask("profile", "use", "acme")
    kept = terminal.run("site", "delete", site["id"], typed="n\n")
    assert kept.returncode != 0
    assert terminal.ask("site", "delete", site["id"], "--yes")["deleted"] is True
    terminal.ask("api-key", "revoke", key["id"], "--yes")
    assert terminal.run("site", "list", "--profile", "viewer").returncode == 1
    events = terminal.run("events", "--json").stdout.splitlines()
    assert [json.loads(line)["place"] for line in events] == list(range(1, len(events) + 1))
    assert "denied" in terminal.run("audit").stdout
    assert terminal.ask("audit", "--verify")["is_intact"] is True
    assert terminal.ask("tenant", "list", "--profile", "provider")["items"][0]["name"] == "Acme"


def test_a_token_can_go_straight_to_a_file(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "join.token"
    words = ("host", "join", "hypervisor 2", "--save-token", str(file), "--profile", "acme")
    assert terminal.ask(*words)["token"] == f"in {file}"
    assert file.read_text().startswith("hfj_")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = terminal.run(*words)
    assert again.returncode == 1
    assert "nothing was made" in again.stderr


def test_profiles_keep_tokens_to_themselves(terminal: Terminal) -> None:
    file = terminal.home / "holdfast/profiles.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = json.loads(file.read_text())["profiles"][0]["token"]
    for words in (("profile", "list"), ("profile", "list", "--json")):
        assert token not in terminal.run(*words).stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("site", "list", "--profile", "nobody"), "profile_missing"),
        (("site", "create", "a\nb", "--territory", "CH", "--profile", "acme"), "invalid_fields"),
        (("site", "create", "x", "--territory", "Mars", "--profile", "acme"), "invalid_fields"),
        (("api-key", "create", "x", "--role", "king", "--profile", "acme"), "invalid_fields"),
        (("host", "revoke", "host_x", "--yes", "--profile", "acme"), "not_found"),
        (("tenant", "create", "Acme", "--profile", "provider"), "name_taken"),
        (("tenant", "show", "--profile", "provider"), "not_authenticated"),
    ],
)
def test_what_is_wrong_is_named(terminal: Terminal, words: tuple[str, ...], code: str) -> None:
    done = terminal.run(*words, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, code)
    assert done.stderr.startswith("holdfast: ")


def test_a_service_that_is_away_is_said_to_be_away(terminal: Terminal) -> None:
    api, root = f"https://localhost:{free_port()}", terminal.started["root_certificate"]
    words = ("--api", api, "--root-file", root, "--token-file", "-")
    terminal.ask("profile", "add", "away", *words, typed="hf_x")
    done = terminal.run("site", "list", "--profile", "away", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "service_away")
    terminal.ask("profile", "remove", "away")
