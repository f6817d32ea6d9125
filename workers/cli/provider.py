"""`holdfast provider`: the provider's own hosts, and which tenant may use and is placed on which;
`holdfast pool`: a tenant's view of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli.control import (
    Json,
    ProfileName,
    SaveToken,
    Yes,
    check_save,
    go_on,
    show_one,
    show_rows,
    show_secret,
)
from workers.cli.datanodes import ProviderOptions
from workers.cli.following import Set, changed_by
from workers.cli.options import command

if TYPE_CHECKING:
    from app.client.rights import Rights
    from app.rights.schemas import PlacementOutput, PolicyInput

provider_app = typer.Typer(help="What is the provider's, as the provider.", no_args_is_help=True)
site_app = typer.Typer(help="Sites of the provider's.", no_args_is_help=True)
pool_app = typer.Typer(help="Pools of the provider's hosts.", no_args_is_help=True)
host_app = typer.Typer(help="Hosts of the provider's.", no_args_is_help=True)
policy_app = typer.Typer(help="What a tenant may use.", no_args_is_help=True)
placement_app = typer.Typer(help="Tenants on the provider's hosts.", no_args_is_help=True)
tenant_app = typer.Typer(help="On what terms a tenant is served.", no_args_is_help=True)
for _name, _group in {
    "site": site_app,
    "pool": pool_app,
    "host": host_app,
    "policy": policy_app,
    "placement": placement_app,
    "tenant": tenant_app,
}.items():
    provider_app.add_typer(_group, name=_name)
tenant_pool_app = typer.Typer(help="The provider's pools, as a tenant.", no_args_is_help=True)
GROUPS = {"provider": provider_app, "pool": tenant_pool_app}

Wait = Annotated[bool, typer.Option("--wait", help="Return when the host has done it.")]


def _connect(profile: str | None) -> Rights:
    from app.client.profiles import Profiles
    from app.client.rights import Rights

    return Rights(Profiles().get(profile))


# --- tenants

Reason = Annotated[str, typer.Option(help="Kept in the tenant's audit log and in yours.")]


@tenant_app.command("show")
def show_tenant(tenant: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """Its state and its plan."""
    with _connect(profile) as client:
        show_one(client.get_provider_tenant(tenant), as_json=as_json)


@tenant_app.command("plan")
def change_plan(
    tenant: str, settings: Set = None, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Change what a tenant may use. What it has beyond a lower limit stays protected."""
    from app.tenants.schemas import Plan

    def change(now: Plan) -> Plan:
        return changed_by(Plan, now.model_dump(), settings)

    with _connect(profile) as client:
        show_one(client.change_plan(tenant, change), as_json=as_json)


@tenant_app.command("suspend")
def suspend_tenant(
    tenant: str,
    reason: Reason,
    yes: Yes = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Let nobody of a tenant in. Replication goes on, and nothing is deleted."""
    go_on(f"Suspend {tenant}? Its people, keys and hosts get no answer until `resume`.", yes=yes)
    with _connect(profile) as client:
        show_one(client.suspend_tenant(tenant, reason), as_json=as_json)


@tenant_app.command("resume")
def resume_tenant(
    tenant: str, reason: Reason, profile: ProfileName = None, as_json: Json = False
) -> None:
    """The end of a suspension."""
    with _connect(profile) as client:
        show_one(client.resume_tenant(tenant, reason), as_json=as_json)


# --- sites, pools, hosts


@site_app.command("create")
def create_site(
    name: str,
    territory: Annotated[str, typer.Option(help="ISO 3166 code: whose law holds there.")],
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A new site."""
    from app.sites.schemas import SiteInput

    wanted = SiteInput.model_construct(name=name, territory=territory, description="")
    with _connect(profile) as client:
        show_one(client.create_provider_site(wanted), as_json=as_json)


@site_app.command("list")
def list_sites(profile: ProfileName = None, as_json: Json = False) -> None:
    """All sites of the provider's."""
    with _connect(profile) as client:
        show_rows(client.list_provider_sites(), ("id", "name", "territory"), as_json=as_json)


@pool_app.command("create")
def create_pool(
    name: Annotated[str, typer.Argument(help="As tenants see it.")],
    site: Annotated[str, typer.Option(help="A site of the provider's: its territory counts.")],
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A new pool. No tenant may use it before its policy says so."""
    from app.pools.schemas import ProviderPoolInput

    wanted = ProviderPoolInput.model_construct(name=name, site_id=site, description="")
    with _connect(profile) as client:
        show_one(client.create_provider_pool(wanted), as_json=as_json)


@pool_app.command("list")
def list_provider_pools(profile: ProfileName = None, as_json: Json = False) -> None:
    """All pools."""
    with _connect(profile) as client:
        show_rows(client.list_provider_pools(), ("id", "name", "site_id"), as_json=as_json)


@host_app.command("join")
def let_host_join(
    name: Annotated[str, typer.Argument(help="The host's name, for people.")],
    pool: Annotated[str, typer.Option(help="The pool that it belongs to.")],
    save_token: SaveToken = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """A token with which one machine joins a pool once: give it to `holdfast-agent enrol`."""
    from app.pools.schemas import ProviderJoinTokenInput

    check_save(save_token)
    wanted = ProviderJoinTokenInput.model_construct(name=name, pool_id=pool)
    with _connect(profile) as client:
        show_secret(client.create_provider_join_token(wanted), save_token, as_json=as_json)


@host_app.command("list")
def list_hosts(profile: ProfileName = None, as_json: Json = False) -> None:
    """All hosts of all pools."""
    columns = ("id", "name", "pool_id", "state", "agent_version", "certificate_expires_at")
    with _connect(profile) as client:
        show_rows(client.list_provider_hosts(), columns, as_json=as_json)


@host_app.command("show")
def show_host(host: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """One host, and how the processes on it are."""
    with _connect(profile) as client:
        show_one(client.get_provider_host(host), as_json=as_json)


@host_app.command("revoke")
def revoke_host(
    host: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Shut a host out at once and for good, with every tenant's process on it."""
    go_on(f"Shut {host} out for good? No tenant's machine there is protected any more.", yes=yes)
    with _connect(profile) as client:
        show_one(client.revoke_provider_host(host), as_json=as_json)


# --- policies


@dataclass(kw_only=True)
class PolicyOptions(ProviderOptions):
    """Options of `policy set`."""

    tenant: Annotated[str, typer.Argument(help="The tenant's identifier.")]
    territory: Annotated[
        list[str] | None, typer.Option(help="Where its data may be; none named: anywhere.")
    ] = None
    pool: Annotated[
        list[str] | None,
        typer.Option(help="POOL or POOL=MACHINES: so many machines are protected there."),
    ] = None


def _policy(options: PolicyOptions) -> PolicyInput:
    from app.rights.schemas import PolicyInput, PoolRight

    pools = []
    for text in options.pool or []:
        pool, _, machines = text.partition("=")
        limit: dict[str, Any] = {"machines_max": machines} if machines else {}
        pools.append(PoolRight.model_construct(pool_id=pool, **limit))
    return PolicyInput.model_construct(territories=options.territory or None, pools=pools)


@policy_app.command("show")
def show_policy(tenant: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """Which territories and pools a tenant may use."""
    with _connect(profile) as client:
        show_one(client.get_policy(tenant), as_json=as_json)


@command(policy_app, "set", PolicyOptions)
def set_policy(options: PolicyOptions) -> None:
    """Give a tenant this policy, whole. What takes a right away is refused: `plan` it."""
    with _connect(options.profile) as client:
        show_one(client.replace_policy(options.tenant, _policy(options)), as_json=options.json)


@command(policy_app, "plan", PolicyOptions)
def plan_policy(options: PolicyOptions) -> None:
    """What this policy would take away. Nothing is done before `apply`."""
    with _connect(options.profile) as client:
        plan = client.plan_policy(options.tenant, _policy(options))
    if options.json:
        show_one(plan, as_json=True)
        return
    for effect in plan.effects:
        typer.echo(f"{effect.what}: {effect.says}")
    typer.echo(f"{plan.id} until {plan.expires_at:%H:%M:%S} UTC" if plan.effects else plan.id)


@policy_app.command("apply")
def apply_policy(
    tenant: str, plan: str, yes: Yes = False, profile: ProfileName = None, as_json: Json = False
) -> None:
    """Do what a plan says. Nothing that is stored is deleted."""
    go_on(f"Apply {plan}? Streams leave the places that it forbids.", yes=yes)
    with _connect(profile) as client:
        show_one(client.apply_policy(tenant, plan), as_json=as_json)


# --- placements


@provider_app.command("place")
def place_tenant(
    tenant: str,
    host: Annotated[str, typer.Argument(help="A host of the provider's.")],
    wait: Wait = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Have a host serve a tenant: a process, a key and a connection of the tenant's own."""
    from app.rights.schemas import PlacementInput

    wanted = PlacementInput.model_construct(tenant_id=tenant, host_id=host)
    with _connect(profile) as client:
        _show_placement(client, client.place_tenant(wanted), wait=wait, as_json=as_json)


@provider_app.command("withdraw")
def withdraw_tenant(
    placement: str,
    yes: Yes = False,
    wait: Wait = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Say what it would end, then shut the tenant out of the host at once. Its journals and its
    machines' disks stay.
    """
    with _connect(profile) as client:
        plan = client.plan_withdrawal(placement)
        for effect in plan.effects:
            typer.echo(effect.says, err=True)
        go_on(f"Withdraw {placement}?", yes=yes)
        made = client.withdraw_placement(placement, plan.id)
        _show_placement(client, made, wait=wait, as_json=as_json)


def _show_placement(client: Rights, made: PlacementOutput, *, wait: bool, as_json: bool) -> None:
    now = client.follow_placement(made.id) if wait else made
    show_one(now, as_json=as_json)
    if now.failure is not None:
        raise typer.Exit(1)


@placement_app.command("list")
def list_placements(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant.")] = None,
    host: Annotated[str | None, typer.Option(help="On this host.")] = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Which tenant is on which host, the newest first."""
    columns = ("id", "tenant_id", "host_id", "pool_id", "state", "created_at")
    with _connect(profile) as client:
        rows = client.list_placements(tenant_id=tenant, host_id=host)
        show_rows(rows, columns, as_json=as_json)


@placement_app.command("show")
def show_placement(placement: str, profile: ProfileName = None, as_json: Json = False) -> None:
    """One placement, and how far it is."""
    with _connect(profile) as client:
        show_one(client.get_placement(placement), as_json=as_json)


# --- as a tenant


@tenant_pool_app.command("list")
def list_pools(profile: ProfileName = None, as_json: Json = False) -> None:
    """The provider's pools that the tenant may use, and what is free there."""
    columns = ("id", "name", "territory", "machines_free", "is_permitted", "is_serving", "site_id")
    with _connect(profile) as client:
        show_rows(client.list_pools(), columns, as_json=as_json)
