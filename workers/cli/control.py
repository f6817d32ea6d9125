"""`holdfast` over the API: profiles, tenants, sites, hosts, events, the audit log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from host_agent.wire.errors import BadKeyFile
from workers.cli.keyfiles import write_new
from workers.cli.options import OutputOptions, command
from workers.cli.output import print_json

if TYPE_CHECKING:
    from app.client.client import Client

_WATCH_SECONDS = 1.0
_FILE_COLUMNS = 200

Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="Instead of the chosen one, or $HOLDFAST_PROFILE.")
]
SaveToken = Annotated[
    Path | None,
    typer.Option("--save-token", help="Write the token to this new file instead of showing it."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def group(text: str) -> typer.Typer:
    """A word with commands under it."""
    return typer.Typer(help=text, no_args_is_help=True)


profile_app = group("Which service, and as whom.")
tenant_app = group("Tenants: make and list them as the provider, show one's own.")
site_app = group("Places with hypervisors.")
host_app = group("Hosts: let them join, list them, shut them out.")
GROUPS = {
    "profile": profile_app,
    "tenant": tenant_app,
    "site": site_app,
    "host": host_app,
}


def connect(profile: str | None) -> Client:
    """A client of the profile's service."""
    # The data path's commands must not wait for what only these use.
    from app.client.client import Client
    from app.client.profiles import Profiles

    return Client(Profiles().get(profile))


def show_rows(rows: Iterable[Any], columns: tuple[str, ...], *, as_json: bool) -> None:
    """A table for people, `{"items": [...]}` for programs."""
    found = [row.model_dump(mode="json") for row in rows]
    if as_json:
        print_json({"items": found})
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_COLUMNS
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in found:
        table.add_row(*(_text(row[name]) for name in columns))
    console.print(table if found else "none")


def show_one(row: Any, *, as_json: bool) -> None:
    """Field by field for people, an object for programs."""
    fields = row.model_dump(mode="json")
    if as_json:
        print_json(fields)
        return
    lines = list(_lines(fields))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:{width}}  {text}".rstrip())


def _lines(fields: dict[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    """A name and a text for each field; what lies in each other is named by its way."""
    for name, value in fields.items():
        shown = inside + name.replace("_", " ")
        if isinstance(value, dict) and value:
            yield from _lines(value, f"{shown}: ")
        else:
            yield shown, _text(value)


def _text(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return " ".join(f"{name}={_text(one)}" for name, one in value.items())
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def check_save(save: Path | None) -> None:
    """BadKeyFile before anything is made whose secret could then not be kept."""
    if save is not None and (save.exists() or not save.absolute().parent.is_dir()):
        raise BadKeyFile(
            f"{save} is there already, or its folder is not; nothing was made.",
            hint="Name a new file in a folder that exists.",
        )


def show_secret(row: Any, save: Path | None, *, as_json: bool) -> None:
    """As `show_one`, the token in a file of mode 0600 if one is named."""
    if save is not None:
        write_new(save, f"{row.token}\n".encode())
        row = row.model_copy(update={"token": f"in {save}"})
    show_one(row, as_json=as_json)


def go_on(question: str, *, yes: bool) -> None:
    """Ask before an act that is not undone by a word; ends the command on a no."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


# --- profiles


@profile_app.command("add")
def add_profile(
    name: str,
    api: Annotated[str, typer.Option(help="https://NAME[:PORT]")],
    root_file: Annotated[Path, typer.Option(help="The deployment's root certificate, PEM.")],
    token_file: Annotated[
        typer.FileText, typer.Option(help="The API key; - reads it from standard input.")
    ],
    as_json: Json = False,
) -> None:
    """Keep a profile, and use it from now on."""
    from app.client.profiles import Profile, Profiles

    profiles = Profiles()
    profiles.add(Profile(name, api, root_file.read_text(), token_file.readline().strip()))
    _tell({"profile": name, "api": api}, f"{name} is chosen: {api}", as_json=as_json)


@profile_app.command("list")
def list_profiles(as_json: Json = False) -> None:
    """All profiles, without their tokens."""
    from app.client.profiles import Profiles

    profiles = Profiles()
    rows = [{"name": one.name, "api": one.api} for one in profiles.all]
    if as_json:
        print_json({"chosen": profiles.chosen, "items": rows})
    for row in [] if as_json else rows:
        typer.echo(f"{'*' if row['name'] == profiles.chosen else ' '} {row['name']}  {row['api']}")


@profile_app.command("use")
def use_profile(name: str, as_json: Json = False) -> None:
    """Use this profile from now on."""
    from app.client.profiles import Profiles

    chosen = Profiles().choose(name)
    text = f"{name} is chosen: {chosen.api}"
    _tell({"profile": name, "api": chosen.api}, text, as_json=as_json)


@profile_app.command("remove")
def remove_profile(name: str, as_json: Json = False) -> None:
    """Forget a profile and its token. The token stays valid: revoke its API key to end it."""
    from app.client.profiles import Profiles

    Profiles().remove(name)
    _tell({"profile": name}, f"{name} is forgotten", as_json=as_json)


def _tell(fields: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        typer.echo(text)


# --- tenants


@tenant_app.command("create")
def create_tenant(
    name: str, save_token: SaveToken = None, profile: ProfileName = None, as_json: Json = False
) -> None:
    """As the provider: a new tenant. Its first administrator's token is shown this once."""
    from app.tenants.schemas import TenantInput

    check_save(save_token)
    with connect(profile) as client:
        made = client.create_tenant(TenantInput.model_construct(name=name))
        show_secret(made, save_token, as_json=as_json)


@tenant_app.command("list")
def list_tenants(profile: ProfileName = None, as_json: Json = False) -> None:
    """As the provider: all tenants."""
    with connect(profile) as client:
        show_rows(client.list_tenants(), ("id", "name", "state", "created_at"), as_json=as_json)


@tenant_app.command("show")
def show_tenant(profile: ProfileName = None, as_json: Json = False) -> None:
    """The tenant that the profile's token is of."""
    with connect(profile) as client:
        show_one(client.get_tenant(), as_json=as_json)


# --- sites


@site_app.command("create")
def create_site(
    name: str,
    territory: Annotated[str, typer.Option(help="ISO 3166 code: whose law holds there.")],
    description: str = "",
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A new site."""
    from app.sites.schemas import SiteInput

    wanted = SiteInput.model_construct(name=name, territory=territory, description=description)
    with connect(profile) as client:
        show_one(client.create_site(wanted), as_json=as_json)


@site_app.command("list")
def list_sites(profile: ProfileName = None, as_json: Json = False) -> None:
    """All sites of the tenant."""
    with connect(profile) as client:
        show_rows(client.list_sites(), ("id", "name", "territory"), as_json=as_json)


@site_app.command("delete")
def delete_site(
    site_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Remove a site that nothing uses."""
    go_on(f"Remove the site {site_id}?", yes=yes)
    with connect(profile) as client:
        client.delete_site(site_id)
    _tell({"id": site_id, "deleted": True}, f"{site_id} is removed", as_json=as_json)


# --- hosts


@dataclass(kw_only=True)
class JoinOptions(OutputOptions):
    """Options of `host join`."""

    name: Annotated[str, typer.Argument(help="The host's name, for people.")]
    site: Annotated[str | None, typer.Option(help="Where it is: a site's name or id.")] = None
    minutes: Annotated[float, typer.Option(min=0.2, max=15, help="How long it works.")] = 15
    save_token: SaveToken = None
    profile: ProfileName = None


@command(host_app, "join", JoinOptions)
def let_join(options: JoinOptions) -> None:
    """A token with which one machine joins once: give it to `holdfast-agent enrol`."""
    from app.hosts.schemas import JoinTokenInput

    check_save(options.save_token)
    with connect(options.profile) as client:
        wanted = JoinTokenInput.model_construct(
            name=options.name,
            site_id=None if options.site is None else _site_id_of(client, options.site),
            lifetime_seconds=round(options.minutes * 60),
        )
        made = client.create_join_token(wanted)
        show_secret(made, options.save_token, as_json=options.json)


def _site_id_of(client: Client, text: str) -> str:
    """The identifier of a site by its name or identifier; BadWord."""
    from workers.cli.following import BadWord

    if text.startswith("site_"):
        return text
    found = next((site for site in client.list_sites() if site.name == text), None)
    if found is None:
        raise BadWord(f"There is no site named {text}.", hint="`holdfast site list` names them.")
    return found.id


@host_app.command("list")
def list_hosts(profile: ProfileName = None, as_json: Json = False) -> None:
    """All hosts of the tenant."""
    columns = ("id", "name", "state", "health", "health_reason", "seen_at", "agent_version")
    with connect(profile) as client:
        show_rows(client.list_hosts(), columns, as_json=as_json)


@host_app.command("show")
def show_host(host: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """One host, by its name or identifier: how it is, and since when."""
    from workers.cli.following import host_id_of

    with connect(profile) as client:
        show_one(client.get_host(host_id_of(client, host)), as_json=as_json)


@host_app.command("revoke")
def revoke_host(
    host_id: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Shut a host out at once and for good. Its journals stay."""
    go_on(f"Shut {host_id} out for good? Its replication ends; its journals stay.", yes=yes)
    with connect(profile) as client:
        show_one(client.revoke_host(host_id), as_json=as_json)


# --- what happened


def events_command(
    after: Annotated[int, typer.Option(min=0, help="Only what comes after this place.")] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted.")] = False,
    profile: ProfileName = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Events of the tenant in order, none missed."""
    with connect(profile) as client:
        while True:
            page = client.read_events(after)
            for event in page.items:
                line = f"{event.place:6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind}  "
                fields = event.model_dump(mode="json")
                _tell(fields, f"{line}{event.subject}  by {event.actor}", as_json=as_json)
            after = page.after
            if not page.items and not watch:
                return
            if not page.items:
                time.sleep(_WATCH_SECONDS)


def audit_command(
    verify: Annotated[bool, typer.Option("--verify", help="Check the log's chain.")] = False,
    profile: ProfileName = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Who did what, when and from where; with --verify, whether the log is whole."""
    with connect(profile) as client:
        if verify:
            verdict = client.verify_audit()
            show_one(verdict, as_json=as_json)
            raise typer.Exit(0 if verdict.is_intact else 1)
        after = 0
        while (page := client.read_audit(after)).items:
            for entry in page.items:
                line = f"{entry.place:6}  {entry.at:%Y-%m-%d %H:%M:%S}  {entry.outcome:7}"
                text = f"{line}  {entry.action}  {entry.subject}  by {entry.actor}"
                _tell(entry.model_dump(mode="json"), text, as_json=as_json)
            after = page.after
