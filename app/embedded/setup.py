"""Makes what a deployment of several processes shares, once: `holdfast setup`.

The secret, the root, the API's certificate, the database's roles with passwords of their own, the
schema, the provider's first key. May be run again: what is there stays, the schema is brought up to
date.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr
from sqlalchemy import URL, create_engine, make_url, text

from app.database.migrate import prepare_database, upgrade
from app.database.roles import ROLES
from app.database.settings import DatabaseUrl
from app.embedded.folder import Folder, open_folder, write_private
from app.embedded.prepare import first_provider_key
from app.embedded.trust import root_of, sealer_of, write_server_file
from app.kit.clock import SystemClock
from app.kit.settings import Settings

_PASSWORD_BYTES = 32


class SetupSettings(Settings):
    """What it is told."""

    administrator_url: DatabaseUrl = Field(
        description="The database as its superuser, without the password."
    )
    administrator_password: SecretStr = SecretStr("")
    state_directory: Path = Field(description="What the processes share; only they may read it.")
    server_names: tuple[str, ...] = Field(
        default=("localhost",), description="The names in the API's certificate, a JSON list."
    )


def run_setup(settings: SetupSettings) -> Mapping[str, str]:
    """Make what is missing. Returns where it is; HoldfastError."""
    with open_folder(settings.state_directory) as folder:
        now = SystemClock().now()
        sealer, root = sealer_of(folder), root_of(folder, now)
        write_server_file(folder, root, settings.server_names, now)
        administrator = _administrator(settings)
        prepare_database(administrator)
        passfile = _passwords(folder, administrator)
        # What follows connects as the service's own roles do.
        os.environ["PGPASSFILE"] = str(passfile)
        url = administrator.set(username=None, password=None)
        upgrade(url)
        folder.used.touch()
        token = asyncio.run(first_provider_key(url, sealer))
        if token is not None:
            write_private(folder.provider_key, f"{token}\n".encode())
    return {
        "root_certificate": str(folder.root_file),
        "root_sha256": root.fingerprint,
        "provider_key_file": str(folder.provider_key),
        "database_passwords": str(passfile),
    }


def _administrator(settings: SetupSettings) -> URL:
    url = make_url(settings.administrator_url).set(drivername="postgresql+psycopg")
    password = settings.administrator_password.get_secret_value()
    return url.set(password=password) if password else url


def _passwords(folder: Folder, administrator: URL) -> Path:
    """A password for each role, in the file that libpq reads. Made once, set each time."""
    file = folder.path / "database.pgpass"
    if file.exists():
        lines = file.read_text().splitlines()
        passwords = {line.split(":")[3]: line.split(":")[4] for line in lines}
    else:
        passwords = {role: secrets.token_hex(_PASSWORD_BYTES) for role in ROLES}
        lines = [f"*:*:*:{role}:{password}" for role, password in passwords.items()]
        write_private(file, "".join(f"{line}\n" for line in lines).encode())
    engine = create_engine(administrator, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for role, password in passwords.items():
            # Hexadecimal digits: nothing in it ends the literal.
            connection.execute(text(f"ALTER ROLE {role} PASSWORD '{password}'"))
    engine.dispose()
    return file
