"""`holdfast vpg` and `holdfast machine`: what is protected, and how."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli.control import Json, ProfileName, Yes, show_one, show_rows
from workers.cli.following import (
    Label,
    Set,
    VpgName,
    Wait,
    Watch,
    connect_protection,
    host_id_of,
    labels_of,
    machine_id_of,
    say,
    settings_of,
    show_operation,
    vpg_id_of,
    watched,
)
from workers.cli.options import OutputOptions, command

if TYPE_CHECKING:
    from app.vpgs.planning_schemas import PlanOutput
    from app.vpgs.schemas import VpgOutput

vpg_app = typer.Typer(help="Groups: machines that are recovered together.", no_args_is_help=True)
machine_app = typer.Typer(help="Machines that hosts have.", no_args_is_help=True)

Machines = Annotated[
    list[str] | None,
    typer.Option("--machine", help="A machine's name or identifier; may be given several times."),
]
_COLUMNS = (
    "id", "name", "lifecycle", "sync", "sla", "link", "rpo_actual_seconds", "machines", "disks",
)  # fmt: skip


@vpg_app.command("create")
def create_vpg(
    name: str,
    machine: Machines = None,
    settings: Set = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A new group. Its hosts begin with its machines at once."""
    from app.vpgs.schemas import MemberInput, VpgInput

    with connect_protection(profile) as client:
        members = [
            MemberInput.model_construct(machine_id=machine_id_of(client, text), disk_ids=None)
            for text in machine or ()
        ]
        wanted = VpgInput.model_construct(
            name=name, machines=members, settings=settings_of({}, settings)
        )
        show_one(client.create_vpg(wanted), as_json=as_json)


@vpg_app.command("list")
def list_vpgs(
    label: Label = None,
    lifecycle: Annotated[str | None, typer.Option(help="Such as protecting, removed.")] = None,
    sla: Annotated[str | None, typer.Option(help="Such as meeting, rpo_breached.")] = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """All groups of the tenant, with how they do."""
    with connect_protection(profile) as client:
        found = client.list_vpgs(label=label, lifecycle=lifecycle, sla=sla)
        show_rows(found, _COLUMNS, as_json=as_json)


@vpg_app.command("show")
def show_vpg(
    vpg: VpgName, watch: Watch = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """One group: what is wanted of it and what is known of it."""
    with connect_protection(profile) as client:
        key = vpg_id_of(client, vpg)
        show = functools.partial(_show_watched if watch else show_one, as_json=as_json)
        watched(lambda: client.get_vpg(key), show, watch=watch)


def _show_watched(vpg: VpgOutput, *, as_json: bool) -> None:
    rpo = "-" if vpg.rpo_actual_seconds is None else f"{vpg.rpo_actual_seconds:.1f} s"
    states = f"{vpg.lifecycle}  {vpg.sync}  {vpg.sla}  {vpg.link}"
    text = f"{vpg.name}  {states}  RPO {rpo}  backlog {vpg.backlog_bytes} B"
    say(vpg.model_dump(mode="json"), text, as_json=as_json)


@vpg_app.command("set")
def set_vpg(
    vpg: VpgName,
    settings: Set = None,
    label: Label = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Change settings and labels; the others stay. What destroys history wants `plan`."""
    from app.vpgs.schemas import VpgChange

    with connect_protection(profile) as client:
        now = client.get_vpg(vpg_id_of(client, vpg))
        fields = {name: getattr(now, name) for name in VpgChange.model_fields}
        fields["settings"] = settings_of(now.settings.model_dump(), settings)
        if label is not None:
            fields["labels"] = labels_of(label)
        wanted = VpgChange.model_construct(**fields)
        show_one(client.replace_vpg(now.id, wanted), as_json=as_json)


@vpg_app.command("machines")
def list_vpg_machines(vpg: VpgName, profile: ProfileName = None, as_json: Json = False) -> None:
    """The machines of a group, and where they are."""
    with connect_protection(profile) as client:
        found = client.list_vpg_machines(vpg_id_of(client, vpg))
        show_rows(found, ("machine_id", "name", "host_id", "is_present"), as_json=as_json)


@vpg_app.command("add")
def add_machine(
    vpg: VpgName, machine: str, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Take a machine with all its disks into a group."""
    from app.vpgs.schemas import MemberInput

    with connect_protection(profile) as client:
        key = machine_id_of(client, machine)
        wanted = MemberInput.model_construct(machine_id=key, disk_ids=None)
        found = client.add_vpg_machine(vpg_id_of(client, vpg), wanted)
        show_rows(found, ("machine_id", "name", "host_id", "is_present"), as_json=as_json)


@vpg_app.command("pause")
def pause_vpg(vpg: VpgName, profile: ProfileName = None, as_json: Json = False) -> None:
    """Stop sending. What is stored stays; the RPO grows."""
    with connect_protection(profile) as client:
        show_one(client.pause_vpg(vpg_id_of(client, vpg)), as_json=as_json)


@vpg_app.command("resume")
def resume_vpg(vpg: VpgName, profile: ProfileName = None, as_json: Json = False) -> None:
    """Go on sending: first what was written meanwhile."""
    with connect_protection(profile) as client:
        show_one(client.resume_vpg(vpg_id_of(client, vpg)), as_json=as_json)


@vpg_app.command("sync")
def force_sync(
    vpg: VpgName,
    full: Annotated[bool, typer.Option("--full", help="Send all, compare nothing.")] = False,
    wait: Wait = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Read the disks again and bring over what differs."""
    from app.vpgs.schemas import ForceSyncInput

    with connect_protection(profile) as client:
        wanted = ForceSyncInput(full=full)
        operation = client.force_sync(vpg_id_of(client, vpg), wanted)
        show_operation(client, operation, wait=wait, as_json=as_json)


@dataclass(kw_only=True)
class RestoreOptions(OutputOptions):
    """Options of `vpg restore`."""

    vpg: VpgName
    host: Annotated[
        str | None, typer.Option(help="The host that gets the disks: name or identifier.")
    ] = None
    pool: Annotated[
        str | None, typer.Option(help="Instead of a host: a pool of the provider's.")
    ] = None
    directory: Annotated[
        str, typer.Option(help="A new folder there, in one that its host.toml allows.")
    ]
    at: Annotated[
        str, typer.Option(help="latest, time:RFC3339, tag:TEXT, checkpoint:ID or seq:N.")
    ] = "latest"
    wait: Wait = False
    profile: ProfileName = None


@command(vpg_app, "restore", RestoreOptions)
def restore_vpg(options: RestoreOptions) -> None:
    """Bring a group's disks back as raw images on a host. Protection goes on untouched."""
    from app.restores.schemas import RestoreInput

    with connect_protection(options.profile) as client:
        host_id = None if options.host is None else host_id_of(client, options.host)
        wanted = RestoreInput.model_construct(
            at=options.at, host_id=host_id, pool_id=options.pool, directory=options.directory
        )
        operation = client.restore_vpg(vpg_id_of(client, options.vpg), wanted)
        show_operation(client, operation, wait=options.wait, as_json=options.json)


@vpg_app.command("delete")
def delete_vpg(
    vpg: VpgName,
    yes: Yes = False,
    wait: Wait = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """End a group's protection. Its journal stays and can be restored from."""
    with connect_protection(profile) as client:
        now = client.get_vpg(vpg_id_of(client, vpg))
        _go_on(f"End the protection of {now.name} with {now.machines} machines?", yes=yes)
        show_operation(client, client.delete_vpg(now.id), wait=wait, as_json=as_json)


@vpg_app.command("plan")
def plan_vpg(
    vpg: VpgName,
    settings: Set = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A machine.")] = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """What a change would do, what would be lost, what cannot be undone. Nothing is done."""
    from app.vpgs.planning_schemas import PlanInput

    with connect_protection(profile) as client:
        now = client.get_vpg(vpg_id_of(client, vpg))
        wanted = PlanInput.model_construct(
            settings=settings_of(now.settings.model_dump(), settings) if settings else None,
            remove_machines=[machine_id_of(client, text) for text in remove or ()],
        )
        _show_plan(client.plan_vpg(now.id, wanted), as_json=as_json)


def _show_plan(plan: PlanOutput, *, as_json: bool) -> None:
    if as_json:
        show_one(plan, as_json=True)
        return
    show_rows(plan.effects, ("what", "before", "after", "is_undoable", "says"), as_json=False)
    for effect in plan.effects:
        lost = {
            "RPO": effect.rpo,
            "seconds of history lost": effect.history_seconds_lost,
            "checkpoints lost": effect.checkpoints_lost,
        }
        for what, value in lost.items():
            if value is not None:
                typer.echo(f"{effect.what}: {what}: {value}")
    if plan.destroys_history:
        hours = plan.delay_seconds / 3600
        typer.echo(f"It destroys history: it waits {hours:g} h and can be cancelled until then.")
    typer.echo(f"Until {plan.expires_at:%H:%M:%S} UTC: holdfast vpg apply {plan.vpg_id} {plan.id}")


@dataclass(kw_only=True)
class ApplyOptions(OutputOptions):
    """Options of `vpg apply`."""

    vpg: VpgName
    plan_id: Annotated[str, typer.Argument(help="As `holdfast vpg plan` shows it.")]
    confirm: Annotated[str | None, typer.Option(help="The group's name, typed.")] = None
    reason: Annotated[str | None, typer.Option(help="Why, where it destroys history.")] = None
    profile: ProfileName = None


@command(vpg_app, "apply", ApplyOptions)
def apply_plan(options: ApplyOptions) -> None:
    """Do what a plan says. What destroys history wants --confirm and --reason, and waits."""
    from app.vpgs.planning_schemas import ApplyInput

    wanted = ApplyInput.model_construct(
        plan_id=options.plan_id, confirm_name=options.confirm, reason=options.reason
    )
    with connect_protection(options.profile) as client:
        operation = client.apply_plan(vpg_id_of(client, options.vpg), wanted)
        show_one(operation, as_json=options.json)


@vpg_app.command("destroy-journal")
def destroy_journal(
    vpg_id: str,
    confirm: Annotated[str, typer.Option(help="The group's name, typed.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Destroy for good what is stored of a removed group: after a delay, cancellable until then."""
    from app.vpgs.planning_schemas import ConfirmInput

    wanted = ConfirmInput.model_construct(confirm_name=confirm, reason=reason)
    with connect_protection(profile) as client:
        show_one(client.destroy_journal(vpg_id, wanted), as_json=as_json)


def _go_on(question: str, *, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True, err=True)


@machine_app.command("list")
def list_machines(
    label: Label = None,
    unprotected: Annotated[
        bool, typer.Option("--unprotected", help="Only those that no group has.")
    ] = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """All machines that the tenant's hosts have or had."""
    filters: dict[str, Any] = {"label": label, "is_protected": "false" if unprotected else None}
    with connect_protection(profile) as client:
        columns = ("id", "name", "host_id", "is_present", "labels", "seen_at")
        show_rows(client.list_machines(**filters), columns, as_json=as_json)


@machine_app.command("show")
def show_machine(machine: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """One machine with its disks."""
    with connect_protection(profile) as client:
        show_one(client.get_machine(machine_id_of(client, machine)), as_json=as_json)


@machine_app.command("label")
def label_machine(
    machine: str, label: Label = None, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Give a machine these labels and no others."""
    labels = labels_of(label)
    with connect_protection(profile) as client:
        key = machine_id_of(client, machine)
        show_one(client.label_machine(key, labels), as_json=as_json)
