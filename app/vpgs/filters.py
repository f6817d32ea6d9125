"""What a list of groups is chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Query
from sqlalchemy import ColumnElement, exists, func

from app.http.dependencies import on_loop
from app.http.labels import LabelQuery, label_filters
from app.http.lookup import parse_filter
from app.http.unit import TenantUnit, tenant_unit
from app.kit.ids import Kind
from app.models import Vpg, VpgDisk, VpgStatus
from app.vpgs.settings import Priority
from app.vpgs.state import HISTORY_SHARE_MIN, Lifecycle, Link, Recovery, Sla, Sync

_Id = Annotated[str | None, Query(max_length=80)]


@dataclass(frozen=True)
class _States:
    """States of a group, each of its own idea, and what it is named and made from."""

    name: Annotated[str | None, Query(max_length=80)] = None
    lifecycle: Annotated[Lifecycle | None, Query()] = None
    sync: Annotated[Sync | None, Query()] = None
    recovery: Annotated[Recovery | None, Query()] = None
    profile_id: _Id = None
    link: Annotated[Link | None, Query()] = None


async def _when(unit: Annotated[TenantUnit, Depends(tenant_unit)]) -> datetime:
    return unit.now


async def _sla(
    now: Annotated[datetime, Depends(_when)], sla: Annotated[Sla | None, Query()] = None
) -> list[ColumnElement[bool]]:
    """The same as `sla_of`, said to the database."""
    if sla is None:
        return []
    status = VpgStatus
    promised = Vpg.settings["rpo_seconds"].as_integer()
    history = Vpg.settings["history_hours"].as_integer() * 3600
    known = status.recoverable_at.is_not(None) & status.oldest_at.is_not(None)
    late = _seconds(now - status.recoverable_at) > promised
    age = _seconds(status.recoverable_at - status.protected_since)
    short = _seconds(status.recoverable_at - status.oldest_at) < HISTORY_SHARE_MIN * func.least(
        history, age
    )
    conditions = {
        Sla.UNKNOWN: ~known,
        Sla.RPO_BREACHED: known & late,
        Sla.HISTORY_BREACHED: known & ~late & short,
        Sla.MEETING: known & ~late & ~short,
    }
    return [conditions[sla]]


def _seconds(interval: Any) -> ColumnElement[Any]:
    return func.extract("epoch", interval)


async def vpg_filters(
    states: Annotated[_States, Depends(on_loop(_States))],
    sla: Annotated[list[ColumnElement[bool]], Depends(_sla)],
    label: LabelQuery = None,
    priority: Annotated[Priority | None, Query()] = None,
    machine_id: _Id = None,
) -> list[ColumnElement[bool]]:
    """Conditions of `shown_vpgs`; removed groups are in it only if they are asked for."""
    filters = label_filters(Vpg.labels, label)
    if states.lifecycle is None:
        filters.append(Vpg.lifecycle != Lifecycle.REMOVED)
    else:
        filters.append(Vpg.lifecycle == states.lifecycle)
    if states.name is not None:
        filters.append(Vpg.name == states.name)
    if states.profile_id is not None:
        profile = parse_filter(Kind.SERVICE_PROFILE, states.profile_id)
        filters.append(Vpg.profile_id == profile)
    if states.recovery is not None:
        filters.append(Vpg.recovery == states.recovery)
    if priority is not None:
        filters.append(Vpg.settings["priority"].as_string() == priority)
    if machine_id is not None:
        machine = parse_filter(Kind.MACHINE, machine_id)
        filters.append(_has(VpgDisk.machine_id == machine))
    return [*filters, *sla, *_status_filters(states)]


def _has(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(VpgDisk.tenant_id == Vpg.tenant_id, VpgDisk.vpg_id == Vpg.id, condition)


def _status_filters(states: _States) -> list[ColumnElement[bool]]:
    wanted = {VpgStatus.sync: states.sync, VpgStatus.link: states.link}
    return [column == value for column, value in wanted.items() if value is not None]
