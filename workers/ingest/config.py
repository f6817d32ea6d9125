"""The configuration file. Each wrong key, value or file is an error that says what to do."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from host_agent.wire.errors import BadName
from host_agent.wire.names import check_name
from host_agent.wire.tables import Table
from workers.ingest.decide import Rules
from workers.ingest.errors import BadConfig
from workers.storage.errors import StoreError
from workers.storage.s3 import S3Credentials
from workers.storage.url import check_store_url

#: A configuration is a few KiB; anything larger is another file named by mistake.
_FILE_BYTES_MAX = 1024 * 1024
_HOSTS_MAX = 10_000
_EXAMPLE = "ingest.example.toml describes every setting."


@dataclass(frozen=True)
class TlsConfig:
    """Certificates, PEM."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path


@dataclass(frozen=True)
class LimitsConfig:
    """What this process takes on at most."""

    connections_max: int = 256
    handshakes_max: int = 64
    memory_bytes_max: int = 1024 * 1024 * 1024
    #: Of all streams together; None: as much as comes.
    bytes_per_second: int | None = None


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """One tenant's ingest, wherever it listens. `hosts` None: every host that has a certificate of
    this tenant. `grace_seconds`: so long after its end a certificate is still accepted.
    """

    tenant: str
    store: str
    credentials: S3Credentials | None = None
    hosts: Mapping[str, frozenset[str]] | None = None
    denied: frozenset[str] = frozenset()
    grace_seconds: float = 0.0
    commit_seconds_min: float = 1.0
    commit_seconds_max: float = 5.0
    probe_seconds: float = 1.0
    asof_seconds: float = 60.0
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    is_probed: bool = False

    @property
    def rules(self) -> Rules:
        """Whom it lets in, and how often it commits."""
        return Rules(
            self.tenant,
            self.hosts,
            self.commit_seconds_min,
            self.commit_seconds_max,
            self.denied,
            self.grace_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class IngestConfig(IngestSettings):
    """The whole file."""

    path: Path
    listen: tuple[str, int]
    tls: TlsConfig
    status_socket: Path | None = None


def commit_seconds_fastest(store: str) -> float:
    """A local folder takes a commit for nothing; a service takes money for it."""
    return 0.2 if store.startswith("file:") else 1.0


def load_config(path: Path) -> IngestConfig:
    """Read and check a configuration file; BadConfig."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise BadConfig(
            f"The configuration file {path} cannot be read: {error.strerror}.",
            hint=f"Name one with --config; {_EXAMPLE}",
        ) from None
    if len(data) > _FILE_BYTES_MAX:
        raise BadConfig(f"{path} is too large for a configuration file.")
    try:
        content = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise BadConfig(f"{path} is not text in UTF-8.", hint="Save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path} is not TOML: {error}.", hint="Correct that line.") from None
    return _parse(_Table(content, "", path.absolute()))


def _parse(top: _Table) -> IngestConfig:
    store = _store(top)
    tls = top.table("tls")
    low = top.number("commit_seconds_min", 0.02, 60, commit_seconds_fastest(store))
    config = IngestConfig(
        path=top.file_path,
        tenant=top.name("tenant"),
        listen=_address(top, "listen"),
        store=store,
        tls=TlsConfig(
            tls.file("certificate_file"), tls.secret("key_file"), tls.file("client_ca_file")
        ),
        credentials=_credentials(top),
        hosts=_hosts(top),
        status_socket=top.path("status_socket") if "status_socket" in top else None,
        commit_seconds_min=low,
        commit_seconds_max=top.number("commit_seconds_max", low, 3600, max(low, 5.0)),
        probe_seconds=top.number("probe_seconds", 0.02, 5, 1.0),
        asof_seconds=top.number("asof_seconds", 0.1, 3600, 60.0),
        limits=_limits(top.table("limits", required=False)),
    )
    tls.end()
    top.end()
    return config


def _store(top: _Table) -> str:
    try:
        return check_store_url(top.text("store"))
    except StoreError as error:
        raise BadConfig(f"{top.file_path}: store: {error.message}", hint=error.hint) from None


def _limits(table: _Table) -> LimitsConfig:
    config = LimitsConfig(
        connections_max=int(table.number("connections_max", 1, 10_000, 256)),
        handshakes_max=int(table.number("handshakes_max", 1, 1_000, 64)),
        memory_bytes_max=int(table.number("memory_mib", 64, 1_048_576, 1024)) << 20,
    )
    table.end()
    return config


def _hosts(top: _Table) -> Mapping[str, frozenset[str]] | None:
    if "hosts" not in top:
        return None
    table = top.table("hosts")
    names = table.keys()
    if len(names) > _HOSTS_MAX:
        raise top.wrong("hosts", f"has more than {_HOSTS_MAX} hosts")
    hosts: dict[str, frozenset[str]] = {}
    for host in names:
        _check(table, host, "host", host)
        groups = table.texts(host)
        for group in groups:
            if group != "*":
                _check(table, host, "group", group)
        hosts[host] = frozenset(groups)
    return hosts


def _check(table: _Table, key: str, kind: str, name: str) -> None:
    try:
        check_name(kind, name)
    except BadName as error:
        raise table.wrong(key, f"is wrong: {error.message.rstrip('.')}", error.hint) from None


def _address(table: _Table, key: str) -> tuple[str, int]:
    text = table.text(key)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise table.wrong(
            key, f"is {text!r:.80}, which is not ADDRESS:PORT", "Write 0.0.0.0:7440 or [::]:7440."
        )
    return host, int(port)


def _credentials(top: _Table) -> S3Credentials | None:
    if "store_credentials_file" not in top:
        return None
    path = top.secret("store_credentials_file")
    form = '{"access_key_id": TEXT, "secret_access_key": TEXT, "session_token": TEXT or absent}'
    try:
        content = json.loads(path.read_bytes())
        if not all(isinstance(text, str) for text in content.values()):
            raise TypeError
        credentials = S3Credentials(**content)
    except (ValueError, TypeError, AttributeError, OSError):
        raise BadConfig(
            f"{path} does not hold the credentials of a store.", hint=f"It must read {form}."
        ) from None
    return credentials


class _Table(Table):
    error = BadConfig
    example = _EXAMPLE

    def file(self, key: str) -> Path:
        path = self.path(key)
        try:
            with path.open("rb"):
                return path
        except OSError as error:
            raise self.wrong(
                key,
                f"names {path}, which cannot be read: {error.strerror}",
                "Make that file, or name another.",
            ) from None

    def secret(self, key: str) -> Path:
        path = self.file(key)
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (0, os.geteuid()):
            raise self.wrong(
                key,
                f"names {path}, which others than its owner may read or change",
                f"Run: chmod 600 {path}",
            )
        return path
