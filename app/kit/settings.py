"""Settings of a process: environment variables, or files in a folder of secrets.

Every variable is named `HOLDFAST_` and the field's name. Where HOLDFAST_SECRETS_DIRECTORY names a
folder, a file of the variable's name in it (in lower case) says the same, which is how container
platforms hand over secrets. A list is written as JSON.

Read without pydantic-settings, which does this and much more: it would take 5 MiB of each process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

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


class Settings(BaseModel):
    """What a kind of process is told. Subclasses name what they need and nothing else."""

    model_config = ConfigDict(frozen=True)

    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"

    @field_validator("*", mode="before")
    @classmethod
    def _open_list(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if not isinstance(value, str) or get_origin(kind) not in (tuple, frozenset):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("write it as a JSON list") from None


Kind = TypeVar("Kind", bound=Settings)


def read_settings(kind: type[Kind]) -> Kind:
    """This process's settings; BadSettings names every variable that is wrong."""
    told = {name: _told(f"{PREFIX}{name.upper()}") for name in kind.model_fields}
    try:
        return kind.model_validate({name: text for name, text in told.items() if text is not None})
    except ValidationError as error:
        wrong = "; ".join(
            f"{PREFIX}{str(one['loc'][0]).upper()}: {one['msg']}" for one in error.errors()
        )
        raise BadSettings(
            f"The settings cannot be used. {wrong}.",
            hint="Set these environment variables and start again.",
        ) from None


def _told(variable: str) -> str | None:
    folder = os.environ.get(SECRETS_DIRECTORY)
    if variable in os.environ or folder is None:
        return os.environ.get(variable)
    file = Path(folder) / variable.lower()
    return file.read_text().strip() if file.is_file() else None


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of an `Address`."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
