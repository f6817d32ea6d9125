"""Every wrong key, value or file of agent.toml is an error that names it and says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from host_agent.control.config import AgentConfig, load_config, parse_config
from host_agent.control.errors import BadConfig

GOOD = """
tenant = "acme"
host = "hv-01"
state_dir = "state"

[ingest]
addresses = ["ingest.example.net:7443", "[2001:db8::1]:7443"]
ca_file = "ca.pem"
certificate_file = "agent.pem"
key_file = "agent.key"

[tap]
run_dir = "run"

[groups.shop]
key_file = "shop.key"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ca.pem", "agent.pem", "agent.key", "shop.key"):
        (tmp_path / name).touch()
    return tmp_path


def parse(folder: Path, text: str) -> AgentConfig:
    return parse_config(text, folder / "agent.toml")


def test_a_good_file_and_its_defaults(folder: Path) -> None:
    config = parse(folder, GOOD)
    assert config.ingest.addresses == (("ingest.example.net", 7443), ("2001:db8::1", 7443))
    assert config.socket == folder / "state" / "agent.sock"
    assert config.tap.state_dir == folder / "state" / "tap"
    assert not config.tap.autostart
    (group,) = config.groups
    assert (group.rpo_seconds, group.commit_seconds, group.ring_bytes) == (5, 1.0, 128 << 20)
    assert group.replication_rate is None
    assert group.sync_rate is None


def test_rates_are_megabits(folder: Path) -> None:
    text = GOOD + "replication_mbit_per_s = 80\nsync_mbit_per_s = 0.8\n"
    (group,) = parse(folder, text).groups
    assert (group.replication_rate, group.sync_rate) == (10_000_000.0, 100_000.0)


@pytest.mark.parametrize(("rpo", "commit"), [(1, 1.0), (5, 1.0), (10, 2.0), (3600, 5.0)])
def test_commits_follow_from_the_objective(folder: Path, rpo: int, commit: float) -> None:
    (group,) = parse(folder, GOOD + f"rpo_seconds = {rpo}\n").groups
    assert group.commit_seconds == commit


WRONG = [
    ('tenant = "acme"', "", "tenant is missing"),
    ('tenant = "acme"', 'tenant = "Acme Inc"', "tenant is wrong: 'Acme Inc' cannot be the name"),
    ('host = "hv-01"', "host = 3", "host must be a text"),
    ('state_dir = "state"', 'state_dir = ""', "state_dir is empty"),
    ('state_dir = "state"', 'state_dri = "state"', "state_dir is missing"),
    ("[tap]", "sorket = 3\n[tap]", "ingest.sorket is not a setting"),
    ('"ingest.example.net:7443", ', '"ingest.example.net", ', "not HOST:PORT"),
    ('"ingest.example.net:7443", ', '"ingest:70000", ', "port 70000"),
    ("addresses = [", "addresses = 3 #", "addresses must be a list"),
    ("addresses = [", "addresses = [] #", "1 to 16 addresses"),
    ('ca_file = "ca.pem"', 'ca_file = "gone.pem"', "gone.pem, which cannot be read"),
    ('run_dir = "run"', 'run_dir = "run"\nautostart = 1', "autostart must be true or false"),
    ('run_dir = "run"', 'run_dir = "run"\nbinary = "gone"', "tap.binary names"),
    ("[groups.shop]", '[groups."Shop 1"]', "cannot be the name of a group"),
    ("[groups.shop]", "[group.shop]", "groups is missing"),
    ('key_file = "shop.key"', "", "groups.shop.key_file is missing"),
    ('key_file = "shop.key"', 'key_file = "shop.key"\nrpo_seconds = 0', "from 1 to 86400, not 0"),
    (
        'key_file = "shop.key"',
        'key_file = "shop.key"\nring_mib = true',
        "ring_mib must be a numb",
    ),
    ('key_file = "shop.key"', 'key_file = "shop.key"\nhold_ms_max = 3000', "from 5 to 2000"),
    ('key_file = "shop.key"', 'key_file = "shop.key"\nsync_mbit_per_s = 0', "from 0.1"),
    ("[tap]", "[tap", "is not TOML"),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_what_is_wrong_is_named(folder: Path, old: str, new: str, message: str) -> None:
    # The last occurrence: key_file stands in [ingest] too.
    at = GOOD.rindex(old)
    text = GOOD[:at] + new + GOOD[at + len(old) :]
    with pytest.raises(BadConfig, match=re.escape(message)) as caught:
        parse(folder, text)
    assert caught.value.hint, "it says what to do"
    assert str(folder) in caught.value.message


def test_a_misspelt_setting_gets_a_suggestion(folder: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(folder, GOOD + "rpo_second = 5\n")
    assert caught.value.hint == "Did you mean rpo_seconds?"


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="No such file"):
        load_config(tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfig, match="UTF-8"):
        load_config(tmp_path / "agent.toml")


def test_the_example_shows_every_setting_and_is_accepted(folder: Path) -> None:
    example = Path(__file__).parents[2] / "host_agent" / "agent.example.toml"
    text = example.read_text().replace('"/', f'"{folder}/')
    everything = re.sub(r"^# (\w+ = |\[\w+\]$)", r"\1", text, flags=re.MULTILINE)
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "usr" / "bin" / "holdfast-tap").touch()
    for version in (text, everything):
        config = parse(folder, version)
        assert config.tenant == "acme"
    full = parse(folder, everything)
    assert full.tap.binary == folder / "usr" / "bin" / "holdfast-tap"
    assert full.groups[0].sync_rate == 25_000_000.0
    assert full.journal is not None
    assert full.groups[0].copies == {"remote", "analyser"}


def test_copies_are_checked(folder: Path) -> None:
    example = Path(__file__).parents[2] / "host_agent" / "agent.example.toml"
    text = example.read_text().replace('"/', f'"{folder}/')
    with pytest.raises(BadConfig, match="none of remote, journal, analyser"):
        parse(folder, text + 'copies = ["remote", "tape"]\n')
    with pytest.raises(BadConfig, match="nothing says where"):
        parse(folder, text + 'copies = ["journal"]\n')
    assert parse(folder, text + "copies = []\n").groups[0].copies == set()
