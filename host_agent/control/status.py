"""What `status` says, from a stream's figures and the tap's answer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from host_agent.control.tap_client import Fields
from host_agent.control.taps import find_group
from host_agent.stream.parts import Means
from host_agent.stream.progress import Compared, Situation, blame
from host_agent.stream.stream import Stream
from host_agent.stream.triggers import meaning_of
from host_agent.wire.errors import HoldfastError
from host_agent.wire.record import State

if TYPE_CHECKING:
    from host_agent.control.agent import Group

_WHY = {
    "guest": "machines write faster than the agent can seal and send",
    "ring": "a sync has to bring over what the ring could not keep",
    "pace": "the bandwidth limit of the group",
    "network": "the line to ingest",
    "ingest": "ingest does not take more, or does not accept the stream",
    "store": "the object store has not confirmed what ingest received",
    "tap": "no tap, or no disk attached",
    "paused": "somebody paused the group",
    "stopped": "the stream was stopped and waits for a person",
}


def condition(stream: Stream) -> tuple[str | None, ...]:
    """What somebody may wait for: state, why it needs a sync, what waits for a person.

    Whether it is connected is no part of it: thousands of streams lose an ingest at once.
    """
    ring, alert = stream.ring, stream.decider.alert
    state = ring.state.state.name.lower() if ring else None
    cause = ring.state.cause if ring and ring.wants_sync else None
    return state, cause, alert.message if alert else None


def headline(stream: Stream) -> tuple[object, ...]:
    """What a log tells when it changes."""
    has_alert = stream.decider.alert is not None
    failure = stream.failure.message if stream.failure and not has_alert else None
    return stream.phase, *condition(stream), failure


async def describe(group: Group, tap: Fields, means: Means) -> Fields:
    """Everything about one group: its first durable copy, and what the others are doing."""
    facts = find_group(tap, group.config.name) or {}
    first, *others = [
        {**await _describe_copy(group, stream, facts, means), "copy": name}
        for name, stream in group.copies.items()
    ] or [_describe_drain(group)]
    return {
        **first,
        "copies": sorted(group.config.copies),
        "other_copies": others,
        "analysis": _analysis(group, facts),
        "tap": facts or None,
    }


def _analysis(group: Group, tap: Fields) -> list[Fields] | None:
    """What the content of the writes tells of each disk."""
    if group.watcher is None:
        return None
    disks = tap.get("disks", [])
    names = {disk.get("number"): disk.get("disk") for disk in disks}
    report = group.watcher.report()
    return [{"disk": names.get(number), "number": number, **report[number]} for number in report]


def _describe_drain(group: Group) -> Fields:
    """A group without a durable copy: its writes are seen and given back."""
    failure = group.drain.failure if group.drain else None
    nothing = ("cause", "generation", "head", "sent", "received", "rpo_seconds", "safe_time",
               "held_up_by", "held_up_why", "ring", "sync", "last_comparison", "spool",
               "alert")  # fmt: skip
    return {
        **dict.fromkeys(nothing),
        "group": group.config.name,
        "copy": None,
        "phase": "unprotected",
        "state": "none",
        "stored": 0,
        "rpo_target_seconds": group.config.rpo_seconds,
        "rpo_met": False,
        "lag": {"records": None, "bytes": None},
        "ingest": {"address": None, "epoch": None},
        "rates": {"wire_bytes_per_second": 0, "plain_bytes_per_second": 0, "waits": {}},
        "limits": dict.fromkeys(
            (
                "replication_bytes_per_second",
                "sync_bytes_per_second",
                "throttle_bytes_per_second",
                "scan_bytes_per_second",
            )
        ),
        "counters": {},
        "failure": failure.as_dict() if failure else None,
    }


async def _describe_copy(group: Group, stream: Stream, facts: Fields, means: Means) -> Fields:
    await _ask_again(stream, means)
    now = means.clock.monotonic()
    rpo = stream.figures.recovery.age_seconds(means.clock.wall_ns(), now)
    held_up_by = blame(_situation(group, stream, rpo, now))
    ring, connection = stream.ring, stream.connection
    target = group.config.rpo_seconds
    ledger = connection.ledger if connection else None
    return {
        "group": group.config.name,
        "phase": stream.phase,
        "state": ring.state.state.name.lower() if ring else facts.get("state", "none"),
        "cause": ring.state.cause if ring and ring.wants_sync else None,
        "generation": ring.generation.hex() if ring else None,
        "head": ring.state.head if ring else None,
        "sent": ledger.sent if ledger else None,
        "received": ledger.received if ledger else None,
        "stored": stream.stored,
        "rpo_seconds": None if rpo is None else round(rpo, 3),
        "rpo_target_seconds": target,
        "rpo_met": rpo is not None and rpo <= target,
        "safe_time": stream.figures.recovery.safe_time,
        "held_up_by": held_up_by,
        "held_up_why": _WHY.get(held_up_by) if held_up_by else None,
        "lag": _lag(stream),
        "ring": _ring(stream),
        "sync": _sync(stream, facts, now),
        "last_comparison": _comparison(stream.figures.sync.last),
        "spool": _spool(stream, means),
        "ingest": {"address": stream.address, "epoch": stream.epoch},
        "rates": _rates(stream, now),
        "limits": _limits(stream),
        "counters": _counters(stream),
        "alert": _alert(stream),
        "failure": stream.failure.as_dict() if stream.failure else None,
    }


async def _ask_again(stream: Stream, means: Means) -> None:
    """An idle stream's newest observation may be seconds old; what is shown should not be."""
    ring = stream.ring
    if ring is None:
        return
    asked_at = means.clock.monotonic()
    # Without an answer the figures are shown as they are, which is never better than the truth.
    with contextlib.suppress(HoldfastError):
        state = await ring.tap.state()
        ring.see(state)
        stream.figures.recovery.observe(state, asked_at, stream.stored)


def _situation(group: Group, stream: Stream, rpo: float | None, now: float) -> Situation:
    ring, connection = stream.ring, stream.connection
    stored = stream.stored
    return Situation(
        phase=stream.phase,
        failure=stream.failure.code if stream.failure else None,
        state=ring.state.state if ring else State.NONE,
        head=ring.state.head if ring else stored,
        sent=connection.ledger.sent if connection else stored,
        stored=stored,
        rpo_seconds=rpo,
        commit_seconds=group.config.commit_seconds,
        waits=stream.figures.waits.shares(now),
    )


def _lag(stream: Stream) -> Fields:
    ring = stream.ring
    if ring is None:
        return {"records": None, "bytes": None}
    with contextlib.suppress(HoldfastError):
        usage = ring.file.usage()
        return {"records": max(0, ring.state.head - stream.stored), "bytes": usage.bytes}
    return {"records": max(0, ring.state.head - stream.stored), "bytes": None}


def _ring(stream: Stream) -> Fields | None:
    if stream.ring is None:
        return None
    with contextlib.suppress(HoldfastError):
        usage = stream.ring.file.usage()
        fill = max(usage.bytes / usage.bytes_capacity, usage.records / usage.records_capacity)
        return {
            "used_bytes": usage.bytes,
            "bytes": usage.bytes_capacity,
            "used_records": usage.records,
            "records": usage.records_capacity,
            "fill": round(fill, 4),
        }
    return None


def _sync(stream: Stream, facts: Fields, now: float) -> Fields | None:
    ring, sync = stream.ring, stream.figures.sync
    if ring is None or not ring.wants_sync:
        return None
    eta = sync.eta_seconds(now)
    waiting = int(facts.get("to_read_bytes") or 0)
    meaning, compared = meaning_of(ring.state.cause), sync.compared
    return {
        "cause": ring.state.cause,
        "no_moment_after": stream.figures.recovery.safe_time,
        "why": meaning.why if meaning else None,
        "reads": meaning.reads if meaning else None,
        "comparison": _comparison(compared),
        "has_begun": sync.began_at is not None,
        "total_bytes": sync.total or waiting,
        "remaining_bytes": sync.remaining if sync.total else waiting,
        "bytes_per_second": round(sync.rate.value(now)) if sync.began_at is not None else 0,
        "eta_seconds": None if eta is None else round(eta, 1),
        "cannot_end": sync.why_endless(now),
    }


def _spool(stream: Stream, means: Means) -> Fields | None:
    """What waits on this host's disk; None without a spool."""
    ring, spooler = stream.ring, stream.spooler
    failure = stream.spool_failure or (spooler.failure if spooler else None)
    if ring is None or (ring.spool is None and failure is None):
        return None
    spool, oldest = ring.spool, None
    if spool is not None:
        with contextlib.suppress(HoldfastError):
            oldest = spool.oldest_time()
    age = None if oldest is None else max(0.0, (means.clock.wall_ns() - oldest) / 1e9)
    return {
        "bytes": spool.used_bytes if spool else 0,
        "capacity_bytes": spool.capacity_bytes if spool else 0,
        "first": spool.first if spool else 0,
        "last": spool.last if spool else 0,
        "age_seconds": None if age is None else round(age, 1),
        "usable": spool is not None and spool.is_usable,
        "failure": failure.as_dict() if failure else None,
    }


def _comparison(compared: Compared | None) -> Fields | None:
    return None if compared is None else dict(vars(compared))


def _rates(stream: Stream, now: float) -> Fields:
    figures = stream.figures
    return {
        "wire_bytes_per_second": round(figures.wire_rate.value(now)),
        "plain_bytes_per_second": round(figures.plain_rate.value(now)),
        "waits": {what: round(share, 3) for what, share in figures.waits.shares(now).items()},
    }


def _limits(stream: Stream) -> Fields:
    buckets = stream.buckets
    return {
        "replication_bytes_per_second": buckets.replication.rate,
        "sync_bytes_per_second": buckets.sync.rate,
        "throttle_bytes_per_second": buckets.throttle.rate,
        "scan_bytes_per_second": buckets.scan.rate,
    }


def _counters(stream: Stream) -> Fields:
    counters = stream.figures.counters
    return {**vars(counters), "records_held": counters.records_held}


def _alert(stream: Stream) -> Fields | None:
    alert = stream.decider.alert
    return None if alert is None else dict(vars(alert))


def describe_tap(tap: Fields) -> Fields:
    """The tap's health: whether it answers, which process, how it drives disks."""
    if "error" in tap:
        return {"answers": False, **tap}
    hello: dict[str, Any] = tap.get("hello", {})
    told = {key: hello.get(key) for key in ("pid", "build", "engine", "failpoints")}
    return {"answers": True, **told}


def resident_bytes() -> int:
    """This process's memory as the kernel counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
