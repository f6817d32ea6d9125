"""States of groups: every pair of state and event, and what is worked out from facts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest

from app.kit.ids import new_uuid
from app.kit.transitions import IllegalTransition, Transitions
from app.rights.state import PLACEMENT, PlacementEvent, PlacementState
from app.vpgs.assignment import DiskRow, GroupRow, HostRow, disk_name, make_assignment
from app.vpgs.settings import Settings
from app.vpgs.state import (
    LIFECYCLE,
    LINK,
    RECOVERY,
    SYNC,
    Facts,
    Lifecycle,
    LifecycleEvent,
    Link,
    LinkEvent,
    Promise,
    Recovery,
    RecoveryEvent,
    Sla,
    Sync,
    SyncEvent,
    rpo_actual_seconds,
    sla_of,
)
from host_agent.wire.names import check_name

NOW = datetime(2026, 11, 22, 22, 10, tzinfo=UTC)
_TABLES: list[tuple[Transitions[Any, Any], type[StrEnum], type[StrEnum]]] = [
    (LIFECYCLE, Lifecycle, LifecycleEvent),
    (SYNC, Sync, SyncEvent),
    (RECOVERY, Recovery, RecoveryEvent),
    (LINK, Link, LinkEvent),
    (PLACEMENT, PlacementState, PlacementEvent),
]
_PAIRS = [
    (table, state, event)
    for table, states, events in _TABLES
    for state in states
    for event in events
]


@pytest.mark.parametrize(
    ("table", "state", "event"), _PAIRS, ids=[f"{state}-{event}" for _, state, event in _PAIRS]
)
def test_each_pair_is_in_its_table_or_refused(
    table: Transitions[Any, Any], state: StrEnum, event: StrEnum
) -> None:
    if (state, event) in table.table:
        assert isinstance(table.after(state, event), type(state))
        return
    with pytest.raises(IllegalTransition) as refused:
        table.after(state, event)
    assert (refused.value.state, refused.value.event) == (state, event)
    assert all(name in refused.value.hint for name in table.events_of(state))


def test_every_state_is_reached_and_only_the_end_is_final() -> None:
    for table, states, _ in _TABLES:
        reached = set(table.table.values())
        assert set(states) - reached <= {Lifecycle.DRAFT, Sync.NONE, Recovery.NONE}
        final = [state for state in states if not table.events_of(state)]
        assert final in ([], [Lifecycle.REMOVED], [PlacementState.WITHDRAWN])


def _facts(rpo: float, history: float, age: float) -> Facts:
    newest = NOW - timedelta(seconds=rpo)
    return Facts(newest, newest - timedelta(seconds=history), newest - timedelta(seconds=age))


@pytest.mark.parametrize(
    ("facts", "sla"),
    [
        (Facts(None, None, None), Sla.UNKNOWN),
        (_facts(9, 3600, 3600), Sla.MEETING),
        (_facts(11, 3600, 3600), Sla.RPO_BREACHED),
        (_facts(11, 0, 7200), Sla.RPO_BREACHED),
        (_facts(9, 2600, 7200), Sla.HISTORY_BREACHED),
        (_facts(9, 2800, 7200), Sla.MEETING),
        (_facts(9, 100, 100), Sla.MEETING),
        (_facts(-5, 0, 0), Sla.MEETING),
    ],
)
def test_a_promise_is_measured_by_facts_alone(facts: Facts, sla: Sla) -> None:
    assert sla_of(Promise(10, 3600), facts, NOW) == sla


def test_an_rpo_is_never_better_than_nothing_lost_and_unknown_without_a_checkpoint() -> None:
    assert rpo_actual_seconds(Facts(None, None, None), NOW) is None
    assert rpo_actual_seconds(_facts(-5, 0, 0), NOW) == 0


def test_equal_rows_make_equal_assignments_and_only_live_groups_are_told() -> None:
    host = HostRow("ten_" + "0" * 26, "host_" + "0" * 26, 3, ["node:443"])
    disks = [DiskRow(f"disk_{number}", f"d{number}", "m", {"kind": "path"}) for number in (2, 1)]
    settings = Settings().model_dump(mode="json")
    groups = [
        GroupRow(f"vpg_{number}", "g", lifecycle, settings, disks)
        for number, lifecycle in enumerate(Lifecycle)
    ]
    told = make_assignment(host, groups)
    assert told == make_assignment(host, groups[::-1])
    states = [group["state"] for group in told["groups"]]
    assert states == ["protecting", "protecting", "paused"]
    assert [disk["disk"] for disk in told["groups"][0]["disks"]] == ["disk_1", "disk_2"]
    assert told["server_name"] == f"ten-{'0' * 26}.ingest"


@pytest.mark.parametrize("machine", ["web", "Web", "wéb server", "-", "x" * 200, ".", "日本"])
def test_a_disk_s_name_can_stand_in_a_stream_and_is_its_own(machine: str) -> None:
    first, second = new_uuid(NOW), new_uuid(NOW)
    name = disk_name(machine, "vda", first, set())
    other = disk_name(machine, "vda", second, {name})
    assert check_name("disk", name) != check_name("disk", other)
    assert (machine == "web") == (name == "web.vda")
