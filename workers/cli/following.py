"""What the commands about protection share: names instead of identifiers, waiting, watching."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from host_agent.wire.errors import HoldfastError
from workers.cli.control import show_one
from workers.cli.output import print_json

if TYPE_CHECKING:
    from pydantic import BaseModel

    from app.client.client import Client
    from app.client.protection import Protection
    from app.operations.schemas import OperationOutput
    from app.vpgs.settings import Settings

M = TypeVar("M", bound="BaseModel")
WATCH_SECONDS = 1.0
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, NAME=VALUE; may be given several times."),
]
Watch = Annotated[bool, typer.Option("--watch", help="Go on until it is over or interrupted.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end.")]
VpgName = Annotated[str, typer.Argument(help="The group's name or identifier.", metavar="GROUP")]
Label = Annotated[
    list[str] | None, typer.Option("--label", help="KEY=VALUE; may be given several times.")
]


class BadWord(HoldfastError):
    """What was typed cannot be meant."""

    code = "bad_word"


class OperationFailed(HoldfastError):
    """An operation that was waited for did not succeed."""

    code = "operation_failed"


def connect_protection(profile: str | None) -> Protection:
    """A client of the profile's service."""
    # The data path's commands must not wait for what only these use.
    from app.client.profiles import Profiles
    from app.client.protection import Protection

    return Protection(Profiles().get(profile))


def vpg_id_of(client: Protection, text: str) -> str:
    """The identifier of a group by its name or identifier; BadWord."""
    if text.startswith("vpg_"):
        return text
    found = next(client.list_vpgs(name=text), None)
    if found is None:
        raise BadWord(f"There is no group named {text}.", hint="`holdfast vpg list` names them.")
    return found.id


def host_id_of(client: Client, text: str) -> str:
    """The identifier of a host by its name or identifier; BadWord."""
    if text.startswith("host_"):
        return text
    found = next((host for host in client.list_hosts() if host.name == text), None)
    if found is None:
        raise BadWord(f"There is no host named {text}.", hint="`holdfast host list` names them.")
    return found.id


def machine_id_of(client: Protection, text: str) -> str:
    """The identifier of a machine by its name or identifier; BadWord."""
    if text.startswith("mach_"):
        return text
    found = list(client.list_machines(name=text))
    if len(found) != 1:
        several = "several machines" if found else "no machine"
        raise BadWord(
            f"There is {several} named {text}.",
            hint="Name it by its identifier: `holdfast machine list` shows them.",
        )
    return found[0].id


def labels_of(texts: list[str] | None) -> dict[str, str]:
    """Labels from KEY=VALUE words; BadWord."""
    labels = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise BadWord(f"{text} is not KEY=VALUE.", hint="Such as --label app=shop.")
        labels[key] = value
    return labels


def settings_of(base: dict[str, Any], texts: list[str] | None) -> Settings:
    """Settings of a group with some of them changed, from NAME=VALUE words; BadWord."""
    from app.vpgs.settings import Settings

    return changed_by(Settings, base, texts)


def changed_by(model: type[M], base: dict[str, Any], texts: list[str] | None) -> M:
    """Any model's fields with some of them changed, from NAME=VALUE words; BadWord."""
    from pydantic import ValidationError

    changed = dict(base)
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or name not in model.model_fields:
            names = ", ".join(model.model_fields)
            raise BadWord(f"{text} is not NAME=VALUE.", hint=f"The names are: {names}.")
        changed[name] = None if value in ("", "none") else value
    try:
        return model(**changed)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise BadWord(
            f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}.",
            hint="The API's schema says what each setting may be.",
        ) from None


def show_operation(
    client: Protection, operation: OperationOutput, *, wait: bool, as_json: bool
) -> None:
    """Show it; with `wait` its way to the end first. OperationFailed if that was no success."""
    if wait:
        operation = client.follow_operation(operation.id, _say)
    show_one(operation, as_json=as_json)
    if wait and operation.state != "succeeded":
        error = operation.error or {}
        raise OperationFailed(
            f"The operation {operation.id} is {operation.state}: {error.get('message', '')}",
            hint=str(error.get("hint", "")),
        )


def _say(operation: OperationOutput) -> None:
    step = next((one.name for one in operation.steps if one.state == "running"), "")
    line = f"{operation.kind} {operation.state} {operation.progress:.0%} {step}"
    typer.echo(line.rstrip(), err=True)


def watched(read: Callable[[], Any], show: Callable[[Any], None], *, watch: bool) -> None:
    """Show it once, or each change of it until somebody interrupts."""
    last = None
    while True:
        now = read()
        if now != last:
            show(now)
        if not watch:
            return
        last = now
        time.sleep(WATCH_SECONDS)


def say(fields: dict[str, Any], text: str, *, as_json: bool) -> None:
    """An object for programs, a sentence for people."""
    if as_json:
        print_json(fields)
    else:
        typer.echo(text)
