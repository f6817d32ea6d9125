"""What a process is told, and how it says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.database.settings import DatabaseSettings
from app.kit.settings import Address, BadSettings, host_and_port, read_settings


class _Settings(DatabaseSettings):
    listen: Address = "127.0.0.1:7443"
    doors: tuple[Address, ...] = ()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(bytes(32))
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", "postgresql://db.example/holdfast")
    monkeypatch.setenv("HOLDFAST_SECRET_FILE", str(tmp_path / "secret"))
    return tmp_path


def test_the_environment_says_it(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_LISTEN", "[::1]:8443")
    monkeypatch.setenv("HOLDFAST_DOORS", '["a:1", "b:2"]')
    settings = read_settings(_Settings)
    assert settings.database.drivername == "postgresql+psycopg"
    assert settings.secret == bytes(32)
    assert host_and_port(settings.listen) == ("::1", 8443)
    assert settings.doors == ("a:1", "b:2")


def test_a_folder_of_secrets_says_it_too(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_DATABASE_URL")
    (told / "holdfast_database_url").write_text("postgresql://other.example/holdfast")
    monkeypatch.setenv("HOLDFAST_SECRETS_DIRECTORY", str(told))
    assert read_settings(_Settings).database.host == "other.example"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://db/holdfast"),
        ("DATABASE_URL", "nonsense"),
        ("LISTEN", "localhost"),
        ("LISTEN", "localhost:70000"),
        ("LOG_LEVEL", "loud"),
        ("DOORS", "a:1,b:2"),
        ("DOORS", '["a"]'),
    ],
)
def test_what_is_wrong_is_named(
    told: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with pytest.raises(BadSettings, match=f"HOLDFAST_{name}"):
        read_settings(_Settings)


def test_what_is_missing_is_named(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_DATABASE_URL")
    with pytest.raises(BadSettings, match="HOLDFAST_DATABASE_URL"):
        read_settings(_Settings)
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", "postgresql://db/holdfast")
    (told / "secret").unlink()
    with pytest.raises(BadSettings, match="SECRET_FILE"):
        read_settings(_Settings).secret  # noqa: B018
