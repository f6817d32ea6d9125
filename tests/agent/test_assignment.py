"""What is assigned, what commands change on top of it, and what a manager may reach."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from host_agent.control.assignment import (
    Override,
    addresses_of,
    check_assignment,
    config_of,
    dump_override,
    parse_override,
)
from host_agent.control.errors import BadAssignment, BadConfig, NotInInventory, StateUnusable
from host_agent.control.facts import sync_word
from host_agent.control.host_settings import InventoryConfig, load_settings
from host_agent.control.inventory import inventory_of
from host_agent.control.reach import Reach
from host_agent.control.sealed_keys import SealedKeys, load_seal
from host_agent.stream.ports import DataKey
from host_agent.wire import control
from host_agent.wire.control import (
    AssignedDisk,
    AssignedGroup,
    Assignment,
    FoundDisk,
    FoundMachine,
    PathSource,
    QmpSource,
)
from host_agent.wire.errors import HoldfastError, WrongKey
from host_agent.wire.keys import GroupKey, TenantKey, make_data_key
from host_agent.wire.names import Identity

DISK = AssignedDisk("disk_1", "vda", "db", PathSource("/disks/a.raw"))
GROUP = AssignedGroup("vpg_1", "ERP", "protecting", 5.0, None, 100.0, 64, [DISK])
WHOLE = Assignment(3, "ten_a", "host_a", ["door:443", "[::1]:7443"], "ten-a.ingest", [GROUP])


def test_an_assignment_that_can_be_obeyed() -> None:
    check_assignment(WHOLE, "ten_a", "host_a")
    assert addresses_of(WHOLE) == (("door", 443), ("::1", 7443))
    config = config_of(GROUP, Override())
    assert (config.name, config.sync_rate, config.ring_bytes) == ("vpg_1", 12.5e6, 64 << 20)
    assert config_of(msgspec.structs.replace(GROUP, ring_mib=1), Override()).ring_bytes == 8 << 20


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant": "ten_b"},
        {"host": "host_b"},
        {"doors": ["door"]},
        {"doors": ["door:99999"]},
        {"groups": [GROUP, GROUP]},
        {"groups": [msgspec.structs.replace(GROUP, disks=[DISK, DISK])]},
        {"groups": [msgspec.structs.replace(GROUP, vpg="asof")]},
        {
            "groups": [
                msgspec.structs.replace(
                    GROUP, disks=[msgspec.structs.replace(DISK, source=PathSource("a.raw"))]
                )
            ]
        },
    ],
)
def test_an_assignment_that_cannot(changed: dict[str, object]) -> None:
    with pytest.raises(BadAssignment):
        check_assignment(msgspec.structs.replace(WHOLE, **changed), "ten_a", "host_a")


def test_commands_hold_until_an_assignment_says_something_new() -> None:
    override = Override(((8.0, None), (None, 100.0)), (True, "protecting"))
    override = parse_override(dump_override(override))
    assert override.rates_of(GROUP) == (8.0, None)
    assert override.paused_of(GROUP)
    other = msgspec.structs.replace(GROUP, name="renamed")
    assert override.rates_of(other) == (8.0, None), "what it says of rates is the same"
    faster = msgspec.structs.replace(GROUP, replication_mbit_per_s=50.0)
    assert override.rates_of(faster) == (50.0, 100.0)
    assert override.paused_of(faster), "what it says of the state is the same"
    paused = msgspec.structs.replace(GROUP, state="paused")
    resumed = replace(override, is_paused=(False, "paused"))
    assert not resumed.paused_of(paused)
    assert not resumed.paused_of(GROUP)


def test_what_a_manager_may_reach(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed, other, allowed / "machine"):
        folder.mkdir()
    (allowed / "machine" / "a.raw").write_bytes(bytes(512))
    (other / "b.raw").write_bytes(bytes(512))
    (allowed / "link.raw").symlink_to(other / "b.raw")
    (allowed / "odd.raw").write_bytes(bytes(513))
    reach = Reach(InventoryConfig((allowed,), (tmp_path / "m.qmp",), (tmp_path / "back",)))
    reach.check(PathSource(str(allowed / "machine" / "a.raw")))
    reach.check(QmpSource(str(tmp_path / "m.qmp"), "drive0"))
    reach.check_target(tmp_path / "back" / "one")
    for path in (other / "b.raw", allowed / "link.raw", allowed / ".." / "other" / "b.raw"):
        with pytest.raises(NotInInventory):
            reach.check(PathSource(str(path)))
    with pytest.raises(NotInInventory):
        reach.check(QmpSource(str(tmp_path / "n.qmp"), "drive0"))
    with pytest.raises(NotInInventory):
        reach.check_target(other)
    assert reach.disks() == [("machine", allowed / "machine" / "a.raw", 512)]


def test_an_inventory_fits_one_message_whatever_there_is() -> None:
    disks = [FoundDisk("d" * 200, PathSource("/" + "p" * 900), 512) for _ in range(8)]
    machines = [FoundMachine(f"m{n:04}", disks) for n in range(300)]
    made = inventory_of(reversed(machines))
    assert len(control.encode(made)) <= 1 << 20
    assert made.machines[0].name == "m0000"
    assert inventory_of(machines).digest == made.digest


@pytest.mark.parametrize(
    ("state", "cause", "word"),
    [
        ("recording", None, "in_sync"),
        ("dirty", "first_start", "initial_sync"),
        ("syncing", "ring_full", "bitmap_sync"),
        ("syncing", "unclean_stop", "delta_sync"),
        ("dirty", "of_a_newer_tap", "delta_sync"),
        ("none", None, None),
    ],
)
def test_how_a_sync_is_called(state: str, cause: str | None, word: str | None) -> None:
    assert sync_word(state, cause) == word


def test_host_toml(tmp_path: Path) -> None:
    assert load_settings(tmp_path).inventory == InventoryConfig()
    file = tmp_path / "host.toml"
    file.write_text(
        'control = ["door:443"]\n[tap]\nrun_dir = "run"\n[inventory]\nfolders = ["/disks"]\n'
        'recovery = ["/back"]\n[placed]\nfolders = ["/srv/{tenant}"]\n'
    )
    settings = load_settings(tmp_path)
    assert settings.tap.run_dir == tmp_path / "run"
    assert settings.inventory.recovery == (Path("/back"),)
    assert settings.placed.inventory("ten_a").folders == (Path("/srv/ten_a"),)
    for wrong in (
        '[inventory]\nfolders = ["disks"]\n',
        '[placed]\nfolders = ["/srv/all"]\n',
        "[inventry]\n",
        "[spool]\nmib = 1\n",
        "= 1",
    ):
        file.write_text(wrong)
        with pytest.raises(BadConfig):
            load_settings(tmp_path)


def test_the_example_of_host_toml_is_accepted(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "host_agent" / "host.example.toml"
    (tmp_path / "host.toml").write_bytes(example.read_bytes())
    settings = load_settings(tmp_path)
    assert settings.inventory.folders == (Path("/var/lib/holdfast/disks"),)
    assert settings.placed.inventory("ten_a").recovery == (Path("/srv/ten_a/recovered"),)


IDENTITY = Identity("ten_a", "vpg_1", "host_a")
GENERATION = bytes(range(16))


def test_sealed_keys_open_here_alone(tmp_path: Path) -> None:
    group = GroupKey.make(TenantKey.make("ten_a"), "vpg_1")
    key, wrapped = make_data_key(group, IDENTITY, GENERATION)
    asked: list[bytes] = []
    seal = load_seal(tmp_path / "seal.key")
    assert load_seal(tmp_path / "seal.key") == seal

    def keys(under: bytes = seal, identity: Identity = IDENTITY) -> SealedKeys:
        return SealedKeys(tmp_path, under, identity, lambda _who, what: asked.append(what))

    assert keys().find(GENERATION) is None
    with pytest.raises(HoldfastError) as caught:
        keys().make(GENERATION)
    assert caught.value.code == "data_key_awaited"
    assert asked == [GENERATION]
    keys().keep(GENERATION, DataKey(key, wrapped))
    found = keys().find(GENERATION)
    assert found is not None
    assert (found.key, found.wrapped) == (key, wrapped)
    assert keys().unwrap(GENERATION, wrapped) == key
    (file,) = (tmp_path / "keys").iterdir()
    assert key not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(WrongKey):
        keys(os.urandom(32)).find(GENERATION)
    with pytest.raises(WrongKey):
        keys(identity=Identity("ten_b", "vpg_1", "host_a")).keep(GENERATION, found)
    with pytest.raises(WrongKey):
        other = make_data_key(group, IDENTITY, bytes(16))[1]
        keys().unwrap(bytes(16), other)


def test_old_keys_are_kept_for_comparisons_and_bounded(tmp_path: Path) -> None:
    group = GroupKey.make(TenantKey.make("ten_a"), "vpg_1")
    keys = SealedKeys(tmp_path, os.urandom(32), IDENTITY, lambda _who, _what: None)
    generations = [bytes([n]) * 16 for n in range(20)]
    for number, generation in enumerate(generations):
        keys.keep(generation, DataKey(*make_data_key(group, IDENTITY, generation)))
        os.utime(tmp_path / "keys" / generation.hex(), (number, number))
    keys.keep_only(generations[-1])
    assert [keys.find(one) is not None for one in generations] == [False] * 3 + [True] * 17


def test_a_damaged_seal_is_named(tmp_path: Path) -> None:
    (tmp_path / "seal.key").write_bytes(b"short")
    with pytest.raises(StateUnusable):
        load_seal(tmp_path / "seal.key")
