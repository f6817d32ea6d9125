"""`holdfast checkpoint`, `operation`, `service-profile` and `alert`."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli.control import Json, ProfileName, Yes, show_one, show_rows
from workers.cli.following import (
    Set,
    VpgName,
    Wait,
    Watch,
    connect_protection,
    say,
    settings_of,
    show_operation,
    vpg_id_of,
    watched,
)
from workers.cli.options import OutputOptions, command
from workers.cli.protection import machine_app, vpg_app

if TYPE_CHECKING:
    from app.operations.schemas import OperationOutput

checkpoint_app = typer.Typer(help="Moments that recovery can choose.", no_args_is_help=True)
operation_app = typer.Typer(help="Work that takes time.", no_args_is_help=True)
service_profile_app = typer.Typer(help="Settings with a name.", no_args_is_help=True)
alert_app = typer.Typer(help="What needs somebody.", no_args_is_help=True)
GROUPS = {
    "vpg": vpg_app,
    "machine": machine_app,
    "checkpoint": checkpoint_app,
    "operation": operation_app,
    "service-profile": service_profile_app,
    "alert": alert_app,
}
_COUNT = Annotated[int, typer.Option("--count", min=1, help="At most so many.")]


# --- checkpoints


@checkpoint_app.command("create")
def take_checkpoint(
    vpg: VpgName,
    tag: Annotated[str, typer.Argument(help="What it is known by.")],
    wait: Wait = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Take a checkpoint with a tag."""
    from app.checkpoints.schemas import CheckpointInput

    with connect_protection(profile) as client:
        wanted = CheckpointInput.model_construct(tag=tag)
        operation = client.take_checkpoint(vpg_id_of(client, vpg), wanted)
        show_operation(client, operation, wait=wait, as_json=as_json)


@checkpoint_app.command("list")
def list_checkpoints(
    vpg: VpgName,
    count: _COUNT = 20,
    named: Annotated[bool, typer.Option("--named", help="Only tagged and pinned ones.")] = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A group's checkpoints, the newest first."""
    with connect_protection(profile) as client:
        found = client.list_checkpoints(vpg_id_of(client, vpg), is_named=str(named).lower())
        columns = ("id", "taken_at", "kind", "state", "tag", "is_pinned", "response_us", "skew_us")
        show_rows(itertools.islice(found, count), columns, as_json=as_json)


@checkpoint_app.command("show")
def show_checkpoint(
    vpg: VpgName, checkpoint_id: str, profile: ProfileName = None, as_json: Json = False
) -> None:
    """One checkpoint: where it cuts each stream, what it cost."""
    with connect_protection(profile) as client:
        found = client.get_checkpoint(vpg_id_of(client, vpg), checkpoint_id)
        show_one(found, as_json=as_json)


@checkpoint_app.command("pin")
def pin_checkpoint(
    vpg: VpgName,
    checkpoint_id: str,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Keep a checkpoint beyond the history window."""
    from app.checkpoints.schemas import PinInput

    with connect_protection(profile) as client:
        wanted = PinInput.model_construct(reason=reason)
        found = client.pin_checkpoint(vpg_id_of(client, vpg), checkpoint_id, wanted)
        show_one(found, as_json=as_json)


@checkpoint_app.command("unpin")
def unpin_checkpoint(
    vpg: VpgName, checkpoint_id: str, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Keep a checkpoint no longer than its history window."""
    with connect_protection(profile) as client:
        found = client.unpin_checkpoint(vpg_id_of(client, vpg), checkpoint_id)
        show_one(found, as_json=as_json)


@dataclass(kw_only=True)
class TimelineOptions(OutputOptions):
    """Options of `checkpoint timeline`."""

    vpg: VpgName
    begin: Annotated[datetime | None, typer.Option("--from", help="UTC; a day before --to.")] = None
    end: Annotated[datetime | None, typer.Option("--to", help="UTC; now.")] = None
    buckets: Annotated[int, typer.Option(min=1, max=500, help="At most so many lines.")] = 24
    profile: ProfileName = None


@command(checkpoint_app, "timeline", TimelineOptions)
def show_timeline(options: TimelineOptions) -> None:
    """How many checkpoints there are in each stretch of time, and how good they are."""
    begin, end = (
        None if one is None else one.replace(tzinfo=UTC) for one in (options.begin, options.end)
    )
    with connect_protection(options.profile) as client:
        key = vpg_id_of(client, options.vpg)
        found = client.get_timeline(key, begin, end, options.buckets)
        columns = ("begins_at", "checkpoints", "complete", "failed", "tagged", "response_us_max")
        if options.json:
            show_one(found, as_json=True)
        else:
            show_rows(found.buckets, columns, as_json=False)


# --- operations


@operation_app.command("list")
def list_operations(
    state: Annotated[str | None, typer.Option(help="Such as running, failed.")] = None,
    count: _COUNT = 50,
    watch: Watch = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """The tenant's operations, the newest first."""
    columns = ("id", "kind", "subject", "state", "progress", "created_at", "finished_at")
    show = functools.partial(show_rows, columns=columns, as_json=as_json)
    with connect_protection(profile) as client:

        def read() -> list[OperationOutput]:
            found = client.list_operations(state=state, sort="-created_at")
            return list(itertools.islice(found, count))

        watched(read, show, watch=watch)


@operation_app.command("show")
def show_one_operation(
    operation_id: str, watch: Watch = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """One operation; with --watch until its end, which is an error unless it succeeded."""
    with connect_protection(profile) as client:
        operation = client.get_operation(operation_id)
        show_operation(client, operation, wait=watch, as_json=as_json)


@operation_app.command("cancel")
def cancel_operation(operation_id: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """End what has not begun; ask what runs to stop and undo."""
    with connect_protection(profile) as client:
        show_one(client.cancel_operation(operation_id), as_json=as_json)


# --- service profiles


@service_profile_app.command("create")
def create_profile(
    name: str,
    settings: Set = None,
    description: str = "",
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A new service profile: what is not set has the usual value."""
    from app.profiles.schemas import ProfileInput

    wanted = ProfileInput.model_construct(
        name=name, description=description, settings=settings_of({}, settings)
    )
    with connect_protection(profile) as client:
        show_one(client.create_service_profile(wanted), as_json=as_json)


@service_profile_app.command("list")
def list_profiles(profile: ProfileName = None, as_json: Json = False) -> None:
    """All service profiles of the tenant."""
    with connect_protection(profile) as client:
        show_rows(client.list_service_profiles(), ("id", "name", "settings"), as_json=as_json)


@service_profile_app.command("delete")
def delete_profile(
    service_profile_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Remove a service profile that no group names."""
    if not yes:
        typer.confirm(f"Remove the service profile {service_profile_id}?", abort=True, err=True)
    with connect_protection(profile) as client:
        client.delete_service_profile(service_profile_id)
    fields = {"id": service_profile_id, "deleted": True}
    say(fields, f"{service_profile_id} is removed", as_json=as_json)


# --- alerts


@alert_app.command("list")
def list_alerts(
    all_: Annotated[bool, typer.Option("--all", help="Cleared ones too.")] = False,
    watch: Watch = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """What needs somebody."""
    columns = ("id", "level", "code", "subject", "message", "raised_at", "acknowledged_by")
    show = functools.partial(show_rows, columns=columns, as_json=as_json)
    is_open = None if all_ else "true"
    with connect_protection(profile) as client:
        watched(lambda: list(client.list_alerts(is_open=is_open)), show, watch=watch)


@alert_app.command("acknowledge")
def acknowledge_alert(alert_id: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """Say that somebody knows; it stays open until its cause is over."""
    with connect_protection(profile) as client:
        show_one(client.acknowledge_alert(alert_id), as_json=as_json)
