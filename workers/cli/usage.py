"""`holdfast usage`: what was protected, by the hour, and what bills are made from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from workers.cli.control import Json, ProfileName, connect, show_one, show_rows

usage_app = typer.Typer(help="What was protected, by the hour.", no_args_is_help=True)
GROUPS = {"usage": usage_app}
_HOURS = ("hour", "vpgs", "machines", "protected_bytes", "retained_bytes")
Since = Annotated[datetime | None, typer.Option(help="UTC; a day before --until.")]
Until = Annotated[datetime | None, typer.Option(help="UTC; now.")]


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


@usage_app.command("show")
def show_usage(
    since: Since = None, until: Until = None, profile: ProfileName = None, as_json: Json = False
) -> None:
    """The tenant's own, hour by hour."""
    with connect(profile) as client:
        found = client.read_usage(_utc(since), _utc(until))
    if as_json:
        show_one(found, as_json=True)
    else:
        show_rows(found.items, _HOURS, as_json=False)


@usage_app.command("tenants")
def show_tenants_usage(
    since: Since = None, until: Until = None, profile: ProfileName = None, as_json: Json = False
) -> None:
    """As the provider: each tenant's sums."""
    columns = (
        *("tenant_id", "hours", "machine_hours", "protected_byte_hours"),
        *("protected_bytes_max", "retained_byte_hours", "retained_bytes_max"),
    )
    with connect(profile) as client:
        found = client.read_tenants_usage(_utc(since), _utc(until))
    show_rows(found.items, columns, as_json=as_json)
