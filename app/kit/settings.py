"""Settings of a process: environment variables, or files in a folder of secrets.

Every variable is named `HOLDFAST_` and the field's name. Where HOLDFAST_SECRETS_DIRECTORY names a
folder, a file of the variable's name in it (in lower case) says the same, which is how container
platforms hand over secrets.
"""

from __future__ import annotations

import os
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

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


#: HOST:PORT; an IPv6 address in brackets.
Address = Annotated[str, AfterValidator(_address)]


class Settings(BaseSettings):
    """What a kind of process is told. Subclasses name what they need and nothing else."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"


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
