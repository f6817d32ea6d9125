"""Settings of a process: environment variables, or files in a folder of secrets.

Every variable is named `HOLDFAST_` and the field's name. Where HOLDFAST_SECRETS_DIRECTORY names a
folder, a file of the variable's name in it (in lower case) says the same, which is how container
platforms hand over secrets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from host_agent.wire.errors import HoldfastError

PREFIX = "HOLDFAST_"
SECRETS_DIRECTORY = "HOLDFAST_SECRETS_DIRECTORY"


class BadSettings(HoldfastError):
    """A process was started with settings that are missing or make no sense."""

    code = "bad_settings"


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError("write it as HOST:PORT")
    return text


def _database(text: str) -> str:
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("write it as postgresql://HOST/DATABASE") from None
    if url.get_backend_name() != "postgresql":
        raise ValueError("only PostgreSQL will do")
    return text


#: HOST:PORT; an IPv6 address in brackets.
Address = Annotated[str, AfterValidator(_address)]
#: Where the database is. Each session adds its role; passwords come from PGPASSFILE.
DatabaseUrl = Annotated[str, AfterValidator(_database)]


class Settings(BaseSettings):
    """What a kind of process is told. Subclasses name what they need and nothing else."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"


class DatabaseSettings(Settings):
    """For processes with a database."""

    database_url: DatabaseUrl
    secret_file: Path = Field(description="32 bytes that seal and sign what the database holds.")

    @property
    def database(self) -> URL:
        """The address as SQLAlchemy takes it."""
        return make_url(self.database_url).set(drivername="postgresql+psycopg")

    @property
    def secret(self) -> bytes:
        """The deployment's secret; BadSettings."""
        try:
            return self.secret_file.read_bytes()
        except OSError as error:
            raise BadSettings(
                f"{PREFIX}SECRET_FILE: {self.secret_file} cannot be read: {error.strerror}."
            ) from None


Kind = TypeVar("Kind", bound=Settings)


def read_settings(kind: type[Kind]) -> Kind:
    """This process's settings; BadSettings names every variable that is wrong."""
    folder = os.environ.get(SECRETS_DIRECTORY)
    try:
        return kind(_secrets_dir=folder)  # type: ignore[call-arg]  # pydantic adds it
    except ValidationError as error:
        wrong = "; ".join(
            f"{PREFIX}{str(one['loc'][0]).upper()}: {one['msg']}" for one in error.errors()
        )
        raise BadSettings(
            f"The settings cannot be used. {wrong}.",
            hint="Set these environment variables and start again.",
        ) from None


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of an `Address`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
