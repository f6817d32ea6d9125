"""The configuration: the example works, and each mistake is an error that says what to do."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.ingest_process import IngestProcess, IngestSetup, Pki
from workers.ingest import config as config_module
from workers.ingest.config import IngestConfig, load_config
from workers.ingest.errors import BadConfig
from workers.ingest.tls import server_context

EXAMPLE = Path(config_module.__file__).with_name("ingest.example.toml")


@pytest.fixture
def write(tmp_path: Path, pki: Pki) -> Callable[[str], Path]:
    """Write a configuration beside good certificates."""
    for name, source in (("ingest.crt", pki.server[0]), ("agents-ca.crt", pki.ca[0])):
        (tmp_path / name).write_bytes(source.read_bytes())
    key = tmp_path / "ingest.key"
    key.write_bytes(pki.server[1].read_bytes())
    key.chmod(0o600)

    def make(text: str) -> Path:
        path = tmp_path / "ingest.toml"
        path.write_text(text)
        return path

    return make


def test_example_is_a_working_configuration(write: Callable[[str], Path]) -> None:
    config = load_config(write(EXAMPLE.read_text()))
    assert config.tenant == "acme"
    assert config.listen == ("0.0.0.0", 7440)
    assert config.hosts is None
    server_context(config.tls)


def test_example_names_every_setting_with_its_default(write: Callable[[str], Path]) -> None:
    """What is commented out in the example is what holds without it."""
    text = EXAMPLE.read_text()
    plain = load_config(write(text))
    shown = re.sub(r"^# (\[\w+\]|\w+ = .*)$", r"\1", text, flags=re.MULTILINE)
    shown = re.sub(r'^store = "s3:.*$', "", shown, flags=re.MULTILINE)
    shown = re.sub(r"^(store_credentials_file|status_socket) = .*$", "", shown, flags=re.MULTILINE)
    full = load_config(write(shown))
    assert full.hosts == {"host1": frozenset({"shop", "ledger"}), "host2": frozenset({"*"})}
    for name in IngestConfig.__dataclass_fields__:
        if name not in {"hosts", "path"}:
            assert getattr(full, name) == getattr(plain, name), name
    known = set(re.findall(r"^#? ?(\w+) = ", text, flags=re.MULTILINE))
    used = set(re.findall(r'"(\w+)"', Path(config_module.__file__).read_text()))
    wanted = known - {"host1", "host2"}
    assert wanted <= used
    assert tomllib.loads(shown)["limits"]["memory_mib"] == 1024


GOOD = """
tenant = "acme"
listen = "127.0.0.1:0"
store = "file:///x"
[tls]
certificate_file = "ingest.crt"
key_file = "ingest.key"
client_ca_file = "agents-ca.crt"
"""

MISTAKES = {
    "not toml": ("tenant = acme", "not TOML"),
    "missing tenant": (GOOD.replace('tenant = "acme"', ""), "tenant is missing"),
    "bad tenant": (GOOD.replace('"acme"', '"Acme Inc"'), "tenant"),
    "number for text": (GOOD.replace('"acme"', "5"), "must be a text"),
    "bad address": (GOOD.replace("127.0.0.1:0", "127.0.0.1"), "not ADDRESS:PORT"),
    "bad port": (GOOD.replace("127.0.0.1:0", "127.0.0.1:99999"), "not ADDRESS:PORT"),
    "bad store": (GOOD.replace("file:///x", "ftp://x"), "store: The store's URL"),
    "secret in the url": (GOOD.replace("file:///x", "s3://k:secret@b"), "carries no user"),
    "no tls": (GOOD[: GOOD.index("[tls]")], "tls is missing"),
    "missing certificate": (GOOD.replace('"ingest.crt"', '"no.crt"'), "cannot be read"),
    "unknown key": ("nonsense = 1\n" + GOOD, "nonsense is not a setting"),
    "misspelt key": ("probe_second = 1\n" + GOOD, "Did you mean probe_seconds"),
    "unknown key in tls": (GOOD + "cipher = 1\n", "tls.cipher is not a setting"),
    "number too large": ("probe_seconds = 1000\n" + GOOD, "from 0.02 to 5"),
    "true for a number": ("probe_seconds = true\n" + GOOD, "must be a number"),
    "bounds crossed": (
        "commit_seconds_min = 9\ncommit_seconds_max = 2\n" + GOOD,
        "commit_seconds_max must be from 9",
    ),
    "groups that are no list": (GOOD + '[hosts]\nhost1 = "shop"\n', "must be a list of texts"),
    "bad group": (GOOD + '[hosts]\nhost1 = ["a/b"]\n', "hosts.host1 is wrong"),
    "bad host": (GOOD + '[hosts]\n"a b" = ["x"]\n', "hosts.a b is wrong"),
    "limit of nothing": (GOOD + "[limits]\nconnections_max = 0\n", "from 1 to"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_named_with_what_to_do(write: Callable[[str], Path], mistake: str) -> None:
    text, expected = MISTAKES[mistake]
    with pytest.raises(BadConfig) as caught:
        load_config(write(text))
    assert expected in str(caught.value)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_key_that_others_may_read_is_refused(write: Callable[[str], Path], mode: int) -> None:
    path = write(GOOD)
    (path.parent / "ingest.key").chmod(mode)
    with pytest.raises(BadConfig, match="others than its owner") as caught:
        load_config(path)
    assert "chmod 600" in caught.value.hint


def test_credentials_are_read_and_never_shown(write: Callable[[str], Path]) -> None:
    path = write('store_credentials_file = "s3.json"\n' + GOOD)
    file = path.parent / "s3.json"
    file.write_text('{"access_key_id": "id", "secret_access_key": "hush"}')
    file.chmod(0o600)
    config = load_config(path)
    assert config.credentials is not None
    assert config.credentials.secret_access_key == "hush"
    assert "hush" not in repr(config)
    for content in (
        "{",
        "[]",
        '{"access_key_id": 5, "secret_access_key": "hush"}',
        '{"x": "hush"}',
    ):
        file.write_text(content)
        with pytest.raises(BadConfig, match="does not hold") as caught:
            load_config(path)
        assert "hush" not in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadConfig, match="UTF-8"):
        load_config(tmp_path / "binary.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(BadConfig, match="too large"):
        load_config(tmp_path / "large.toml")


@pytest.mark.parametrize("wrong", ["key of another", "no certificate", "no authority"])
def test_certificates_that_cannot_be_used_are_named(
    write: Callable[[str], Path], pki: Pki, wrong: str
) -> None:
    path = write(GOOD)
    if wrong == "key of another":
        (path.parent / "ingest.key").write_bytes(pki.agent("host1")[1].read_bytes())
    else:
        name = "ingest.crt" if wrong == "no certificate" else "agents-ca.crt"
        (path.parent / name).write_text("nothing")
    with pytest.raises(BadConfig) as caught:
        server_context(load_config(path).tls)
    assert str(path.parent) in str(caught.value)
    assert caught.value.hint


def test_taken_address_is_named(tmp_path: Path, pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        setup = IngestSetup(tmp_path, pki, f"file://{tmp_path}/store")
        path = setup.write()
        path.write_text(
            path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        )
        setup.write = lambda: path  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="bad_config") as caught:
            IngestProcess(setup)
    assert "Traceback" not in str(caught.value)


def test_store_that_is_away_keeps_it_from_starting(tmp_path: Path, pki: Pki) -> None:
    (tmp_path / "file").write_text("in the way")
    setup = IngestSetup(tmp_path, pki, f"file://{tmp_path}/file/store")
    with pytest.raises(RuntimeError, match="store_refused") as caught:
        IngestProcess(setup)
    assert "Traceback" not in str(caught.value)
