"""What a change of a group would do, said before it is done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOUR_SECONDS = 3600
#: Settings that say how much history is kept.
OF_HISTORY = ("history_hours", "journal_bytes_max")
#: Settings with no more to say than that they change.
_PLAIN = ("replication_mbit_per_s", "sync_mbit_per_s", "ring_mib", "priority")


@dataclass(frozen=True)
class Effect:
    """One thing that would change. `is_undoable`: whether changing it back brings back all."""

    what: str
    before: Any
    after: Any
    says: str
    is_undoable: bool = True
    rpo: str | None = None
    history_seconds_lost: float | None = None
    checkpoints_lost: int | None = None
    bytes_to_sync: int | None = None


@dataclass(frozen=True)
class Member:
    """A machine of the group: its name, and the bytes of its disks."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Group:
    """A group as a plan reads it. Machines by their ids; `checkpoints_older` lie beyond the history
    that is wanted.
    """

    name: str
    settings: Mapping[str, Any]
    recovery_site: str | None
    members: Mapping[str, Member] = field(default_factory=dict)
    hosts: int = 0
    history_seconds: float = 0.0
    checkpoints_older: int = 0


@dataclass(frozen=True)
class Change:
    """What is wanted. One of: settings and site, machines that go, the end."""

    settings: Mapping[str, Any] | None = None
    recovery_site: str | None = None
    remove: tuple[str, ...] = ()
    delete: bool = False


def is_tighter(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the journal's limit is lower than it was."""
    old, new = before["journal_bytes_max"], after["journal_bytes_max"]
    return new is not None and (old is None or new < old)


def destroys_history(before: Mapping[str, Any], after: Mapping[str, Any] | None) -> bool:
    """Whether these settings may take history away that there is."""
    if after is None:
        return False
    return after["history_hours"] < before["history_hours"] or is_tighter(before, after)


def effects_of(group: Group, change: Change) -> list[Effect]:
    """Everything that the change would do, in the order of settings."""
    if change.delete:
        return [_end(group)]
    if change.remove:
        return [_removal(group, machine_id) for machine_id in change.remove]
    effects = [] if change.settings is None else _settings(group, change.settings)
    if change.recovery_site is not None and change.recovery_site != group.recovery_site:
        effects.append(
            Effect(
                "recovery_site_id",
                group.recovery_site,
                change.recovery_site,
                "Recoveries go to another site. Tests made at the old one prove nothing for it.",
            )
        )
    return effects


def _settings(group: Group, after: Mapping[str, Any]) -> list[Effect]:
    makers = {
        "rpo_seconds": _rpo,
        "checkpoint_seconds": _checkpoints,
        "history_hours": _history,
        "journal_bytes_max": _limit,
        **dict.fromkeys(_PLAIN, _plain),
    }
    return [
        make(group, name, after[name])
        for name, make in makers.items()
        if after[name] != group.settings[name]
    ]


def _plain(group: Group, name: str, after: Any) -> Effect:
    before = group.settings[name]
    return Effect(name, before, after, f"From {before} to {after}, at once.")


def _rpo(group: Group, name: str, after: Any) -> Effect:
    before = group.settings[name]
    rpo = f"{before} s were promised, {after} s are from now on."
    return Effect(name, before, after, "Another RPO is promised and watched.", rpo=rpo)


def _checkpoints(group: Group, name: str, after: Any) -> Effect:
    rpo = f"At best {after} s: a checkpoint is taken that often."
    return Effect(name, group.settings[name], after, "Another distance of checkpoints.", rpo=rpo)


def _history(group: Group, name: str, after: Any) -> Effect:
    before = group.settings[name]
    if after > before:
        says = "History grows from now on. What was folded already does not come back."
        return Effect(name, before, after, says)
    lost = max(0.0, group.history_seconds - after * HOUR_SECONDS)
    return Effect(
        name,
        before,
        after,
        f"What is older than {after} h is folded away; tagged and pinned checkpoints stay.",
        is_undoable=False,
        history_seconds_lost=lost,
        checkpoints_lost=group.checkpoints_older,
    )


def _limit(group: Group, name: str, after: Any) -> Effect:
    before = group.settings[name]
    if not is_tighter(group.settings, {name: after}):
        return Effect(name, before, after, "The journal may grow further.")
    return Effect(
        name,
        before,
        after,
        f"Whatever does not fit into {after} bytes is folded away, the oldest first.",
        is_undoable=False,
        history_seconds_lost=group.history_seconds,
    )


def _removal(group: Group, machine_id: str) -> Effect:
    member = group.members[machine_id]
    return Effect(
        f"machines.{machine_id}",
        member.name,
        None,
        f"{member.name} is in no later checkpoint of {group.name}; its history stays. Coming back, "
        "its disks are compared and what differs is sent.",
        rpo="Without end for this machine: nothing of it is protected any more.",
        bytes_to_sync=member.bytes,
    )


def _end(group: Group) -> Effect:
    return Effect(
        "lifecycle",
        group.name,
        None,
        f"Replication of {len(group.members)} machines ends on {group.hosts} hosts. "
        "The journal stays and can be restored from.",
        is_undoable=False,
        rpo="Without end: nothing of the group is protected any more.",
        bytes_to_sync=sum(member.bytes for member in group.members.values()),
    )
