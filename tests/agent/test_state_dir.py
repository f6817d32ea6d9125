"""What survives a restart: wrapped keys before they seal anything, pauses, and the lock."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from host_agent.control.errors import AgentRunning, StateUnusable
from host_agent.control.state_dir import KeyStore, StateDir, load_group_key, write_durably
from host_agent.wire.errors import BadKeyFile, HoldfastError
from host_agent.wire.keys import GroupKey, TenantKey, open_with_tenant
from host_agent.wire.names import Identity

IDENTITY = Identity("acme", "shop", "hv-01")
TENANT = TenantKey.make("acme")
GROUP = GroupKey.make(TENANT, "shop")
FIRST, SECOND = b"1" * 16, b"2" * 16


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "agent")


def store(state: StateDir) -> KeyStore:
    return KeyStore(state.group("shop"), GROUP, IDENTITY)


def test_a_key_is_found_again_and_opens_for_the_tenant(state: StateDir) -> None:
    made = store(state).make(FIRST)
    found = store(state).find(FIRST)
    assert found == made
    assert open_with_tenant(made.wrapped, TENANT, IDENTITY, FIRST) == made.key
    assert store(state).find(SECOND) is None


def test_nothing_on_disk_shows_a_key_or_is_readable_by_others(state: StateDir) -> None:
    key = store(state).make(FIRST)
    for path in [state.path, *state.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, path
        if path.is_file():
            assert key.key not in path.read_bytes()
    assert "key" not in repr(key).lower().replace("datakey", "")


def test_keys_of_ended_generations_are_removed(state: StateDir) -> None:
    keys = store(state)
    keys.make(FIRST)
    keys.make(SECOND)
    keys.keep_only(SECOND)
    assert keys.find(FIRST) is None
    assert keys.find(SECOND) is not None


def test_a_damaged_or_foreign_key_is_an_error_and_never_made_anew(state: StateDir) -> None:
    keys = store(state)
    keys.make(FIRST)
    path = state.group("shop") / "keys" / FIRST.hex()
    whole = path.read_bytes()
    other = GroupKey.make(TENANT, "shop")
    for content in (b"", whole[:-5], whole.replace(b"shop", b"shoq"), b"{}" * 20_000):
        path.write_bytes(content)
        with pytest.raises(HoldfastError):
            keys.find(FIRST)
    path.write_bytes(whole)
    with pytest.raises(HoldfastError):
        KeyStore(state.group("shop"), other, IDENTITY).find(FIRST)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateUnusable, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_one_agent_at_a_time(state: StateDir) -> None:
    state.lock()
    with pytest.raises(AgentRunning):
        StateDir(state.path).lock()
    state.unlock()
    again = StateDir(state.path)
    again.lock()
    again.unlock()


def test_a_pause_is_remembered(state: StateDir) -> None:
    assert not state.is_paused("shop")
    state.set_paused("shop", True)
    assert StateDir(state.path).is_paused("shop")
    state.set_paused("shop", False)
    state.set_paused("shop", False)
    assert not StateDir(state.path).is_paused("shop")


def test_a_state_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnusable) as caught:
        StateDir(tmp_path / "file" / "agent")
    assert "state_dir" in caught.value.hint


def test_group_key_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "shop.key"
    with pytest.raises(BadKeyFile, match="cannot be read"):
        load_group_key(path, "acme", "shop")
    path.write_bytes(GROUP.dump())
    assert load_group_key(path, "acme", "shop") == GROUP
    with pytest.raises(BadKeyFile, match="acme/shop, not of acme/ledger"):
        load_group_key(path, "acme", "ledger")
    path.write_bytes(TENANT.dump())
    with pytest.raises(BadKeyFile):
        load_group_key(path, "acme", "shop")
