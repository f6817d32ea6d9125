"""Writes what a newcomer needs to run both sides on one machine: keys, certificates, configuration.

Everything in the folder is throw-away. `python -m infra.dev_keys DIR`, or `make dev-keys DIR=path`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from host_agent.wire.errors import HoldfastError
from host_agent.wire.keys import GroupKey, TenantKey
from host_agent.wire.names import agent_san, check_name
from infra.dev_certificates import Authority, Issued

SERVER_NAMES = ("localhost",)
SERVER_ADDRESSES = ("127.0.0.1", "::1")


class FolderTaken(HoldfastError):
    """The folder already holds keys, and keys are never overwritten."""

    code = "folder_taken"


@dataclass(frozen=True)
class DevSetup:
    """What to write, and where. `store` is a URL; without it a folder beside the keys."""

    directory: Path
    tenant: str = "acme"
    host: str = "host1"
    group: str = "demo"
    port: int = 47400
    store: str | None = None

    def path(self, name: str) -> Path:
        """A file of the folder."""
        return self.directory / name

    @property
    def store_url(self) -> str:
        """Where the journal goes."""
        return self.store or f"file://{self.path('store')}"


def write_dev_setup(setup: DevSetup, now: datetime) -> list[Path]:
    """Write all files; FolderTaken if there are keys already. Returns what was written."""
    for kind, name in (("tenant", setup.tenant), ("host", setup.host), ("group", setup.group)):
        check_name(kind, name)
    if setup.path("tenant.key").exists():
        raise FolderTaken(
            f"{setup.directory} already holds a tenant key.",
            hint="Name another folder, or remove this one with all that it protects.",
        )
    setup.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets = _keys(setup)
    public: dict[str, bytes] = {}
    for name, issued in _certificates(setup, now).items():
        public[f"{name}.crt"] = issued.certificate
        secrets[f"{name}.key"] = issued.key
    public["ingest.toml"] = ingest_toml(setup).encode()
    public["agent.toml"] = agent_toml(setup).encode()
    if setup.store is None:
        setup.path("store").mkdir(mode=0o700, exist_ok=True)
    written = [_write(setup.path(name), data, 0o600) for name, data in secrets.items()]
    return written + [_write(setup.path(name), data, 0o644) for name, data in public.items()]


def _keys(setup: DevSetup) -> dict[str, bytes]:
    tenant_key = TenantKey.make(setup.tenant)
    group_key = GroupKey.make(tenant_key, setup.group)
    return {"tenant.key": tenant_key.dump(), f"{setup.group}.group.key": group_key.dump()}


def _certificates(setup: DevSetup, now: datetime) -> dict[str, Issued]:
    authority = Authority("Holdfast trial", now)
    return {
        "ca": authority.issued,
        "ingest": authority.server(SERVER_NAMES, SERVER_ADDRESSES),
        "agent": authority.client(setup.host, agent_san(setup.tenant, setup.host)),
    }


def _write(path: Path, data: bytes, mode: int) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return path


def ingest_toml(setup: DevSetup) -> str:
    """The configuration of ingest: everything beside it in the folder."""
    return f"""\
# A trial on one machine, written by `make dev-keys`. Paths are relative to this file.
tenant = "{setup.tenant}"
listen = "127.0.0.1:{setup.port}"
store = "{setup.store_url}"

[tls]
certificate_file = "ingest.crt"
key_file = "ingest.key"
client_ca_file = "ca.crt"
"""


def agent_toml(setup: DevSetup) -> str:
    """The configuration of the agent: everything beside it in the folder."""
    return f"""\
# A trial on one machine, written by `make dev-keys`. Paths are relative to this file.
tenant = "{setup.tenant}"
host = "{setup.host}"
state_dir = "agent"

[ingest]
addresses = ["127.0.0.1:{setup.port}"]
server_name = "localhost"
ca_file = "ca.crt"
certificate_file = "agent.crt"
key_file = "agent.key"

[tap]
run_dir = "run"
autostart = true

[groups.{setup.group}]
key_file = "{setup.group}.group.key"
rpo_seconds = 5
"""


def _arguments(arguments: list[str] | None) -> DevSetup:
    parser = argparse.ArgumentParser(
        prog="dev-keys", description="Throw-away keys, certificates and configuration files."
    )
    parser.add_argument("directory", type=Path, help="folder to write to; made if absent")
    parser.add_argument("--tenant", default=DevSetup.tenant)
    parser.add_argument("--host", default=DevSetup.host)
    parser.add_argument("--group", default=DevSetup.group)
    parser.add_argument("--port", type=int, default=DevSetup.port, help="where ingest listens")
    parser.add_argument(
        "--store", default=None, help="store URL; a folder beside the keys if absent"
    )
    given = parser.parse_args(arguments)
    return DevSetup(
        directory=given.directory.absolute(),
        tenant=given.tenant,
        host=given.host,
        group=given.group,
        port=given.port,
        store=given.store,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command. Ends 1 with a sentence where nothing could be written."""
    setup = _arguments(arguments)
    try:
        written = write_dev_setup(setup, datetime.now(UTC))
    except HoldfastError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{setup.directory} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
