"""`host.toml` in the identity's folder: what of this machine a manager may reach, and where the tap
is. Nothing in it is needed where the defaults will do.

A manager can have protected what the inventory names and nothing else, whatever it assigns: the
folders and sockets here are this machine's own word on that.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host_agent.control.config import SpoolConfig, TapConfig
from host_agent.control.errors import BadConfig
from host_agent.wire.tables import Table

FILE = "host.toml"
_FILE_BYTES_MAX = 1024 * 1024
_RUN_DIR = Path("/run/holdfast")
_TENANT = "{tenant}"
_LISTS = ("folders", "qmp", "recovery")


@dataclass(frozen=True)
class InventoryConfig:
    """What may be protected: disks in these folders, machines behind these QMP sockets.

    `qmp` names sockets or folders of sockets, `recovery` the folders that may be restored into.
    """

    folders: tuple[Path, ...] = ()
    qmp: tuple[Path, ...] = ()
    recovery: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PlacedConfig:
    """What placed tenants may reach. `{tenant}` stands for the tenant's identifier."""

    folders: tuple[str, ...] = ()
    qmp: tuple[str, ...] = ()
    recovery: tuple[str, ...] = ()

    def inventory(self, tenant: str) -> InventoryConfig:
        """One tenant's."""
        lists = (self.folders, self.qmp, self.recovery)
        return InventoryConfig(
            *(tuple(Path(text.replace(_TENANT, tenant)) for text in texts) for texts in lists)
        )


@dataclass(frozen=True)
class HostSettings:
    """The whole file."""

    tap: TapConfig
    inventory: InventoryConfig
    placed: PlacedConfig
    spool: SpoolConfig | None
    control: tuple[str, ...]


def load_settings(directory: Path) -> HostSettings:
    """What the folder's file says, or the defaults; BadConfig."""
    file = directory / FILE
    table = _Table(_read(file), "", file)
    settings = HostSettings(
        tap=_tap(table.table("tap") if "tap" in table else None, directory),
        inventory=_inventory(table),
        placed=_placed(table),
        spool=_spool(table, directory),
        control=tuple(table.texts("control")) if "control" in table else (),
    )
    table.end()
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise BadConfig(f"{file} is too large for a configuration file.")
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadConfig(f"{file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{file} is not TOML: {error}.", hint="Correct that line.") from None


def _tap(table: _Table | None, directory: Path) -> TapConfig:
    state = directory / "tap"
    if table is None:
        return TapConfig(_RUN_DIR, state, autostart=False, binary=None)
    config = TapConfig(
        run_dir=table.path("run_dir", _RUN_DIR),
        state_dir=table.path("state_dir", state),
        autostart=table.flag("autostart", default=False),
        binary=table.path("binary") if "binary" in table else None,
    )
    table.end()
    return config


def _inventory(top: _Table) -> InventoryConfig:
    if "inventory" not in top:
        return InventoryConfig()
    table = top.table("inventory")
    config = InventoryConfig(*(_paths(table, key) for key in _LISTS))
    table.end()
    return config


def _paths(table: _Table, key: str) -> tuple[Path, ...]:
    return tuple(Path(text) for text in _absolute(table, key))


def _absolute(table: _Table, key: str) -> tuple[str, ...]:
    texts = tuple(table.texts(key, may_be_empty=True)) if key in table else ()
    for text in texts:
        if not Path(text).is_absolute():
            raise table.wrong(key, f"has {text!r:.80}, which is no absolute path")
    return texts


def _placed(top: _Table) -> PlacedConfig:
    if "placed" not in top:
        return PlacedConfig()
    table = top.table("placed")
    config = PlacedConfig(*(_absolute(table, key) for key in _LISTS))
    for text in (*config.folders, *config.qmp, *config.recovery):
        if _TENANT not in text:
            raise table.wrong("folders", f"has {text!r:.80}, which is the same for every tenant")
    table.end()
    return config


def _spool(top: _Table, directory: Path) -> SpoolConfig | None:
    if "spool" not in top:
        return None
    table = top.table("spool")
    path = table.path("path", directory / "spool")
    config = SpoolConfig(path, int(table.number("mib", 64, 16 * 1024 * 1024, 1024)) << 20)
    table.end()
    return config


class _Table(Table):
    error = BadConfig
    example = "host.example.toml describes it."
