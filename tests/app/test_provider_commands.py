"""`holdfast provider` and `holdfast pool`, as the provider's staff and a tenant type them."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.demo.processes import free_port, json_output, tool
from tests.app.test_commands import Terminal
from tests.app.test_up import running, state_folder

pytestmark = pytest.mark.xdist_group("provider commands")

PROVIDER = ("--profile", "provider")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    with state_folder() as folder, running(folder, free_port()) as (_, started):
        terminal = Terminal(tmp_path_factory.mktemp("home"), started)
        terminal.add_profile("provider", Path(started["provider_key_file"]).read_text())
        yield terminal


def test_from_a_site_to_a_placed_tenant(terminal: Terminal, tmp_path: Path) -> None:
    def provider(*words: str) -> dict[str, Any]:
        return terminal.ask("provider", *words, *PROVIDER)

    tenant = terminal.ask("tenant", "create", "Acme", *PROVIDER)
    terminal.add_profile("acme", tenant["token"])
    site = provider("site", "create", "Zürich", "--territory", "CH")
    pool = provider("pool", "create", "cloud", "--site", str(site["id"]))
    token = tmp_path / "host.token"
    provider("host", "join", "cloud-1", "--pool", str(pool["id"]), "--save-token", str(token))
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    identity = tmp_path / "identity"
    words = [tool("holdfast-agent"), "enrol", "--api", terminal.started["url"], "--json"]
    host = json_output([*words, "--token-file", token, "--directory", identity])
    (listed,) = provider("host", "list")["items"]
    assert (listed["id"], listed["pool_id"]) == (host["host_id"], pool["id"])

    place = ("provider", "place", tenant["id"], host["host_id"], *PROVIDER, "--json")
    refused = terminal.run(*place)
    assert (refused.returncode, json.loads(refused.stdout)["error"]) == (1, "not_granted")
    shown = provider("policy", "set", tenant["id"], "--pool", f"{pool['id']}=3")
    # Fewer territories are planned first.
    grant = ("--territory", "CH", "--pool", f"{pool['id']}=3")
    early = terminal.run("provider", "policy", "set", tenant["id"], *grant, *PROVIDER, "--json")
    assert json.loads(early.stdout)["error"] == "plan_required"
    plan = provider("policy", "plan", tenant["id"], *grant)
    assert [one["what"] for one in plan["effects"]] == ["territories"]
    shown = provider("policy", "apply", tenant["id"], plan["id"], "--yes")
    assert shown["territories"] == ["CH"]
    assert shown == provider("policy", "show", tenant["id"])
    made = terminal.ask(*place[:-1])
    assert made["state"] == "requested"
    (row,) = provider("placement", "list", "--tenant", tenant["id"])["items"]
    assert row["id"] == made["id"] == provider("placement", "show", made["id"])["id"]
    (seen,) = terminal.ask("pool", "list", "--profile", "acme")["items"]
    assert (seen["id"], seen["name"], seen["machines_free"]) == (pool["id"], "cloud", 3)
    assert (seen["is_permitted"], seen["is_serving"]) == (True, False)
    gone = provider("withdraw", made["id"], "--yes")
    assert gone["state"] == "withdrawing"
    narrower = terminal.run("provider", "policy", "set", tenant["id"], *PROVIDER, "--json")
    assert json.loads(narrower.stdout)["error"] == "plan_required"


def test_a_tenant_s_terms_change(terminal: Terminal) -> None:
    made = terminal.ask("tenant", "create", "Initech", *PROVIDER)
    terminal.add_profile("initech", made["token"])
    words = ("provider", "tenant", "plan", made["id"], "--set", "vpgs_max=3")
    changed = terminal.ask(*words, "--set", "protected_bytes_max=1000000", *PROVIDER)
    assert (changed["plan"]["vpgs_max"], changed["plan"]["disks_max"]) == (3, 100)
    assert changed == terminal.ask("provider", "tenant", "show", made["id"], *PROVIDER)
    wrong = terminal.run(*words[:-1], "vpgs=3", *PROVIDER, "--json")
    assert (wrong.returncode, json.loads(wrong.stdout)["error"]) == (1, "bad_word")
    why = ("--reason", "an unpaid bill", *PROVIDER)
    terminal.ask("provider", "tenant", "suspend", made["id"], "--yes", *why)
    assert terminal.run("vpg", "list", "--profile", "initech", "--json").returncode == 1
    assert terminal.ask("provider", "tenant", "resume", made["id"], *why)["state"] == "active"
    assert terminal.ask("vpg", "list", "--profile", "initech")["items"] == []
