"""What a list of groups is chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query
from sqlalchemy import ColumnElement, exists

from app.http.labels import LabelQuery, label_filters
from app.http.lookup import parse_filter
from app.kit.ids import Kind
from app.models import Vpg, VpgDisk, VpgStatus
from app.vpgs.settings import Priority
from app.vpgs.state import Lifecycle, Link, Recovery, Sync

_Id = Annotated[str | None, Query(max_length=80)]


@dataclass(frozen=True)
class _States:
    """States of a group, each of its own idea."""

    lifecycle: Annotated[Lifecycle | None, Query()] = None
    sync: Annotated[Sync | None, Query()] = None
    recovery: Annotated[Recovery | None, Query()] = None
    link: Annotated[Link | None, Query()] = None


def vpg_filters(
    states: Annotated[_States, Depends()],
    label: LabelQuery = None,
    priority: Annotated[Priority | None, Query()] = None,
    profile_id: _Id = None,
    machine_id: _Id = None,
) -> list[ColumnElement[bool]]:
    """Conditions of a list; removed groups are in it only if they are asked for."""
    filters = label_filters(Vpg.labels, label)
    if states.lifecycle is None:
        filters.append(Vpg.lifecycle != Lifecycle.REMOVED)
    else:
        filters.append(Vpg.lifecycle == states.lifecycle)
    if states.recovery is not None:
        filters.append(Vpg.recovery == states.recovery)
    if priority is not None:
        filters.append(Vpg.settings["priority"].as_string() == priority)
    if profile_id is not None:
        filters.append(Vpg.profile_id == parse_filter(Kind.SERVICE_PROFILE, profile_id))
    if machine_id is not None:
        machine = parse_filter(Kind.MACHINE, machine_id)
        filters.append(_has(VpgDisk.machine_id == machine))
    return [*filters, *_status_filters(states)]


def _has(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(VpgDisk.tenant_id == Vpg.tenant_id, VpgDisk.vpg_id == Vpg.id, condition)


def _status_filters(states: _States) -> list[ColumnElement[bool]]:
    wanted = {VpgStatus.sync: states.sync, VpgStatus.link: states.link}
    conditions = [column == value for column, value in wanted.items() if value is not None]
    if not conditions:
        return []
    same = (VpgStatus.tenant_id == Vpg.tenant_id, VpgStatus.vpg_id == Vpg.id)
    return [exists().where(*same, *conditions)]
