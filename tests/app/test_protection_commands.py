"""Groups from the command line, as an administrator types it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.demo.processes import free_port
from tests.app.test_commands import Terminal
from tests.app.test_up import HOLDFAST, running, state_folder

pytestmark = pytest.mark.xdist_group("protection commands")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with state_folder() as folder, running(folder, free_port()) as (_, started):
        terminal = Terminal(tmp_path_factory.mktemp("home"), started)
        terminal.add_profile("provider", Path(started["provider_key_file"]).read_text())
        terminal.add_profile("acme", terminal.ask("tenant", "create", "Acme")["token"])
        yield terminal


def test_a_group_from_its_making_to_its_end(terminal: Terminal) -> None:
    made = terminal.ask("vpg", "create", "web shop", "--set", "rpo_seconds=8")
    assert (made["settings"]["rpo_seconds"], made["lifecycle"]) == (8, "draft")
    words = ("vpg", "set", "web shop", "--set", "history_hours=48", "--label", "app=shop")
    assert terminal.ask(*words)["labels"] == {"app": "shop"}
    listed = terminal.ask("vpg", "list", "--label", "app=shop")["items"]
    assert [one["settings"]["history_hours"] for one in listed] == [48]
    assert "web shop" in terminal.run("vpg", "list").stdout
    plan = terminal.ask("vpg", "plan", "web shop", "--set", "rpo_seconds=30")
    assert [effect["what"] for effect in plan["effects"]] == ["rpo_seconds"]
    assert terminal.ask("vpg", "apply", "web shop", plan["id"])["state"] == "succeeded"
    refused = terminal.run("checkpoint", "create", "web shop", "before", "--json")
    assert json.loads(refused.stdout)["error"] == "illegal_transition"
    kept = terminal.run("vpg", "delete", "web shop", typed="n\n")
    assert kept.returncode != 0
    ended = terminal.ask("vpg", "delete", "web shop", "--yes", "--wait")
    assert ended["outcome"] == {"journal": "kept"}
    shown = terminal.ask("operation", "show", ended["id"], "--watch")
    assert shown["state"] == "succeeded"
    assert terminal.ask("operation", "list")["items"][0]["kind"] == "vpg.delete"
    assert terminal.run("vpg", "show", "web shop").returncode == 1


def test_service_profiles_machines_and_alerts_are_listed(terminal: Terminal) -> None:
    profile = terminal.ask("service-profile", "create", "gold", "--set", "rpo_seconds=5")
    assert terminal.ask("service-profile", "list")["items"] == [profile]
    assert terminal.ask("service-profile", "delete", profile["id"], "--yes")["deleted"] is True
    for group in ("machine", "alert"):
        assert terminal.ask(group, "list")["items"] == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("vpg", "create", "x", "--set", "speed=9"), "bad_word"),
        (("vpg", "create", "x", "--set", "rpo_seconds=soon"), "bad_word"),
        (("vpg", "create", "x", "--machine", "nobody"), "bad_word"),
        (("vpg", "show", "nobody"), "bad_word"),
        (("vpg", "set", "vpg_x", "--label", "app"), "not_found"),
        (("vpg", "create", "a\nb"), "invalid_fields"),
        (("operation", "show", "op_x"), "not_found"),
    ],
)
def test_what_is_wrong_is_named(terminal: Terminal, words: tuple[str, ...], code: str) -> None:
    done = terminal.run(*words, "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, code)


def test_the_shell_completes_commands() -> None:
    told = {"_HOLDFAST_COMPLETE": "complete_bash", "COMP_WORDS": "holdfast vpg ", "COMP_CWORD": "2"}
    done = subprocess.run(
        [str(HOLDFAST)], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    assert {"create", "pause", "plan"} <= set(done.stdout.split())
