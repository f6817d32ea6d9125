"""The configuration file. Each wrong key, value or file is an error that says what to do."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from host_agent.control.errors import BadConfig
from host_agent.wire.errors import BadName
from host_agent.wire.names import check_name
from host_agent.wire.tables import Table

MEGABIT_BYTES = 1_000_000 / 8
ADDRESSES_MAX = 16
GROUPS_MAX = 256
#: What may be made of each write: a stream to ingest, a local journal, a look at its content.
REMOTE, JOURNAL, ANALYSER = "remote", "journal", "analyser"
_COPIES = (REMOTE, JOURNAL, ANALYSER)
#: A configuration is a few KiB; anything larger is another file named by mistake.
_FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class IngestConfig:
    """Where streams go, and who both sides are."""

    addresses: tuple[tuple[str, int], ...]
    server_name: str | None
    ca_file: Path
    certificate_file: Path
    key_file: Path


@dataclass(frozen=True)
class TapConfig:
    """Where the tap is, and whether to start it."""

    run_dir: Path
    state_dir: Path
    autostart: bool
    binary: Path | None


@dataclass(frozen=True)
class GroupConfig:
    """One protection group on this host. Rates in bytes a second, None without a limit."""

    name: str
    rpo_seconds: float
    replication_rate: float | None
    sync_rate: float | None
    ring_bytes: int
    hold_ms_max: int
    copies: frozenset[str] = frozenset({REMOTE, ANALYSER})
    #: None where keys come from the manager.
    key_file: Path | None = None

    @property
    def commit_seconds(self) -> float:
        """The age at which ingest commits: a fifth of the RPO, 1 to 5 s."""
        return min(5.0, max(1.0, self.rpo_seconds / 5))


@dataclass(frozen=True)
class SpoolConfig:
    """Where sealed frames wait while the line is down: a folder, and bytes for each group."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class AgentConfig:
    """The whole file."""

    path: Path
    tenant: str
    host: str
    state_dir: Path
    socket: Path
    ingest: IngestConfig
    journal: IngestConfig | None
    tap: TapConfig
    groups: tuple[GroupConfig, ...]
    spool: SpoolConfig | None = None
    #: Memory for frames that are being made or sent, of all groups together.
    frame_memory_bytes: int = 36 * 1024 * 1024

    def group(self, name: str) -> GroupConfig | None:
        """The group of that name, or None."""
        return next((group for group in self.groups if group.name == name), None)


def load_config(path: Path) -> AgentConfig:
    """Read and check a configuration file; BadConfig."""
    return parse_config(_read(path), path.absolute())


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise BadConfig(f"{path} is too large for a configuration file.")
        return data.decode()
    except OSError as error:
        raise BadConfig(
            f"The configuration file {path} cannot be read: {error.strerror}.",
            hint="Name one with --config; agent.example.toml shows what belongs into it.",
        ) from None
    except UnicodeDecodeError:
        raise BadConfig(f"{path} is not text in UTF-8.", hint="Save it as UTF-8.") from None


def parse_config(text: str, path: Path) -> AgentConfig:
    """Check the content of the file at `path` (absolute); BadConfig."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path} is not TOML: {error}.", hint="Correct that line.") from None
    top = _Table(content, "", path)
    state_dir = top.path("state_dir")
    config = AgentConfig(
        path=path,
        tenant=top.name("tenant"),
        host=top.name("host"),
        state_dir=state_dir,
        socket=top.path("socket", state_dir / "agent.sock"),
        ingest=_ingest(top.table("ingest")),
        journal=_ingest(top.table("journal")) if "journal" in top else None,
        tap=_tap(top.table("tap"), state_dir),
        groups=_groups(top.table("groups")),
        spool=_spool(top.table("spool")) if "spool" in top else None,
    )
    top.end()
    _check_journal(config)
    return config


def _check_journal(config: AgentConfig) -> None:
    wants = [group.name for group in config.groups if JOURNAL in group.copies]
    if wants and config.journal is None:
        raise BadConfig(
            f"{config.path}: group {wants[0]} keeps a local journal, but nothing says where.",
            hint="Add the table [journal], or leave journal out of copies.",
        )


def _ingest(table: _Table) -> IngestConfig:
    texts = table.texts("addresses", may_be_empty=True)
    if not 1 <= len(texts) <= ADDRESSES_MAX:
        raise table.wrong("addresses", f"must list 1 to {ADDRESSES_MAX} addresses")
    config = IngestConfig(
        addresses=tuple(_address(table, text) for text in texts),
        server_name=table.text("server_name") if "server_name" in table else None,
        ca_file=table.file("ca_file"),
        certificate_file=table.file("certificate_file"),
        key_file=table.file("key_file"),
    )
    table.end()
    return config


def _address(table: _Table, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise table.wrong("addresses", f"has {text!r}, which is not HOST:PORT")
    if not 1 <= int(port) <= 65535:
        raise table.wrong("addresses", f"has port {port}, which does not exist")
    return host, int(port)


def _tap(table: _Table, state_dir: Path) -> TapConfig:
    config = TapConfig(
        run_dir=table.path("run_dir"),
        state_dir=table.path("state_dir", state_dir / "tap"),
        autostart=table.flag("autostart", default=False),
        binary=table.file("binary") if "binary" in table else None,
    )
    table.end()
    return config


def _spool(table: _Table) -> SpoolConfig:
    config = SpoolConfig(
        path=table.path("path"),
        bytes=int(table.number("mib", 64, 16 * 1024 * 1024, 1024)) << 20,
    )
    table.end()
    return config


def _groups(table: _Table) -> tuple[GroupConfig, ...]:
    names = table.keys()
    if not 1 <= len(names) <= GROUPS_MAX:
        raise BadConfig(
            f"{table.file_path} must have 1 to {GROUPS_MAX} groups.",
            hint="Add a table [groups.NAME] with a key_file.",
        )
    return tuple(_group(name, table.table(name)) for name in names)


def _group(name: str, table: _Table) -> GroupConfig:
    try:
        check_name("group", name)
    except BadName as error:
        raise BadConfig(f"{table.file_path}: {error.message}", hint=error.hint) from None
    config = GroupConfig(
        name=name,
        key_file=table.file("key_file"),
        rpo_seconds=table.number("rpo_seconds", 1, 86_400, 5),
        replication_rate=_rate(table, "replication_mbit_per_s"),
        sync_rate=_rate(table, "sync_mbit_per_s"),
        ring_bytes=int(table.number("ring_mib", 8, 65_536, 128)) << 20,
        hold_ms_max=int(table.number("hold_ms_max", 5, 2_000, 200)),
        copies=_copies(table),
    )
    table.end()
    return config


def _copies(table: _Table) -> frozenset[str]:
    if "copies" not in table:
        return frozenset({REMOTE, ANALYSER})
    wanted = table.texts("copies", may_be_empty=True)
    unknown = [word for word in wanted if word not in _COPIES]
    if unknown:
        raise table.wrong(
            "copies", f"has {unknown[0]!r:.40}, which is none of {', '.join(_COPIES)}"
        )
    return frozenset(wanted)


def _rate(table: _Table, key: str) -> float | None:
    if key not in table:
        return None
    return table.number(key, 0.1, 1_000_000, 0) * MEGABIT_BYTES


class _Table(Table):
    error = BadConfig
    example = "agent.example.toml describes it."

    def file(self, key: str) -> Path:
        """A file that can be read."""
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
