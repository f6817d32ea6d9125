"""What is decided about a mirror: pure, in every state of the tap and of QEMU."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from host_agent.hypervisor.mirror import (
    MIRRORED,
    SYNCING,
    UNPROTECTED,
    Act,
    Job,
    Mirror,
    Names,
    QemuView,
    TapView,
    concerns,
    ended_why,
    first_pace,
    pace,
)

MIB = 1 << 20
TAP = TapView(7, 1, "rest", "syncing", "disk_added", 0, 64 * MIB, 0)
READY = Job("ready", True, False, "ok", 100 * MIB, 100 * MIB, MIB, 0)
COPYING = replace(READY, status="running", is_ready=False, done=MIB, dirty=99 * MIB)
FAILED = replace(READY, is_paused=True, io_status="failed", dirty=MIB)


def step(tap: TapView, job: Job | None, now: float = 100.0, *, has_target: bool = True) -> Act:
    return Mirror().decide(tap, QemuView(job, has_target), now).act


def test_only_a_clean_job_over_its_one_connection_is_confirmed() -> None:
    decided = Mirror().decide(TAP, QemuView(READY, True), 0)
    assert (decided.act, decided.health, decided.is_lost) == (Act.CONFIRM, MIRRORED, False)
    for tap in (replace(TAP, clients=0), replace(TAP, clients=2), replace(TAP, needs="all")):
        assert Mirror().decide(tap, QemuView(READY, True), 100).act != Act.CONFIRM
    unclean = (
        replace(READY, is_ready=False),
        replace(READY, dirty=1),
        replace(READY, dirty=None, done=READY.length - 1),
        replace(READY, io_status="nospace"),
        replace(READY, status="concluded"),
        replace(READY, is_paused=True),
        replace(READY, is_paused=True, status="standby", dirty=1),
        replace(READY, is_paused=True, status="standby", io_status="failed"),
        replace(READY, is_paused=True, status="paused", dirty=1),
    )
    for job in unclean:
        assert Mirror().decide(TAP, QemuView(job, True), 100).act != Act.CONFIRM, job


def test_under_load_a_moments_pause_tells_whether_copies_are_on_their_way() -> None:
    loaded = replace(READY, length=READY.length + MIB)
    assert step(TAP, loaded) == Act.PAUSE
    pausing = replace(loaded, is_paused=True)
    assert step(TAP, pausing) == Act.WAIT
    standing = replace(pausing, status="standby")
    assert step(TAP, standing) == Act.CONFIRM
    assert step(replace(TAP, clients=0), standing) == Act.RESUME
    assert step(TAP, replace(standing, dirty=1)) == Act.RESUME
    assert step(TAP, replace(standing, dirty=None)) == Act.RESUME
    # Confirmed once, it is renewed while nothing failed: a failure would have begun a new round.
    assert step(replace(TAP, needs="nothing"), loaded) == Act.CONFIRM
    decided = Mirror().decide(replace(TAP, needs="nothing"), QemuView(standing, True), 0)
    assert (decided.act, decided.health, decided.is_lost) == (Act.RESUME, MIRRORED, False)


def test_without_a_job_the_whole_disk_begins() -> None:
    idle = replace(TAP, clients=0, needs="all")
    assert step(idle, None, has_target=True) == Act.REMOVE_TARGET
    assert step(idle, None, has_target=False) == Act.START
    assert step(replace(idle, needs="rest"), None, has_target=False) == Act.START
    assert step(replace(idle, state="dirty"), None, has_target=False) == Act.WAIT
    assert step(replace(idle, clients=1), None, has_target=False) == Act.WAIT


def test_a_job_that_does_not_bring_everything_is_ended() -> None:
    for job in (READY, COPYING, FAILED):
        assert step(replace(TAP, needs="all"), job) == Act.CANCEL
    assert step(replace(TAP, needs="all"), replace(READY, status="aborting")) == Act.WAIT


def test_a_halted_job_is_resumed_when_there_is_room_and_ever_more_slowly() -> None:
    mirror = Mirror()
    qemu = QemuView(FAILED, True)
    assert mirror.decide(replace(TAP, state="dirty"), qemu, 10).act == Act.WAIT
    assert mirror.decide(replace(TAP, ring_used_bytes=40 * MIB), qemu, 10).act == Act.WAIT
    resumed = []
    for tick in range(300):
        decided = mirror.decide(TAP, qemu, 10 + tick / 10)
        assert decided.health == UNPROTECTED
        assert decided.is_lost
        if decided.act == Act.RESUME:
            resumed.append(tick / 10)
    waits = [b - a for a, b in pairwise(resumed)]
    assert waits == sorted(waits)
    assert waits[0] < 0.5
    assert 4.5 < waits[-1] < 5.5


def test_a_job_that_was_never_broken_but_has_no_connection_is_nudged_then_begun_again() -> None:
    mirror = Mirror()
    acts = [
        mirror.decide(replace(TAP, clients=0), QemuView(READY, True), 50 + tick).act
        for tick in range(20)
    ]
    assert acts[0] == Act.NUDGE
    assert acts.index(Act.CANCEL) == 16
    assert acts.count(Act.NUDGE) == 16


def test_a_start_that_is_refused_is_tried_again_ever_more_slowly() -> None:
    mirror, now, tries = Mirror(), 0.0, []
    idle = replace(TAP, clients=0, needs="all")
    while now < 200:
        if mirror.decide(idle, QemuView(None, False), now).act == Act.START:
            tries.append(now)
            mirror.on_start_failed(now)
        now += 0.5
    waits = [b - a for a, b in pairwise(tries)]
    assert waits[:5] == [1, 2, 4, 8, 16]
    assert set(waits[5:]) == {30}
    mirror.hurry()
    assert mirror.decide(idle, QemuView(None, False), now).act == Act.START


def test_while_it_copies_an_earlier_confirmation_is_neither_renewed_nor_withdrawn() -> None:
    decided = Mirror().decide(replace(TAP, needs="nothing"), QemuView(COPYING, True), 0)
    assert (decided.act, decided.health, decided.is_lost) == (Act.WAIT, SYNCING, False)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("BLOCK_JOB_COMPLETED", {"device": "j", "error": "boom"}, "the mirror job ended: boom"),
        ("BLOCK_JOB_COMPLETED", {"device": "j"}, "somebody completed the mirror job"),
        ("BLOCK_JOB_CANCELLED", {"device": "j"}, "somebody cancelled the mirror job"),
        ("BLOCK_JOB_CANCELLED", {"device": "k"}, None),
        ("SHUTDOWN", {"guest": True}, "the machine was shut down"),
        ("BLOCK_JOB_READY", {"device": "j"}, None),
    ],
)
def test_events_tell_why_a_job_ended(
    name: str, data: dict[str, object], expected: str | None
) -> None:
    assert ended_why({"event": name, "data": data}, "j") == expected


def test_events_of_others_do_not_wake() -> None:
    assert concerns({"event": "JOB_STATUS_CHANGE", "data": {"id": "j"}}, "j")
    assert concerns({"event": "BLOCK_JOB_ERROR", "data": {"device": "j"}}, "j")
    assert concerns({"event": "RESET"}, "j")
    assert not concerns({"event": "JOB_STATUS_CHANGE", "data": {"id": "k"}}, "j")
    assert not concerns({"event": "RTC_CHANGE", "data": {}}, "j")


def test_names_are_the_same_for_the_same_disk_and_fit() -> None:
    one = Names.of("/run/holdfast/g.nbd", "vda")
    assert one == Names.of("/run/holdfast/g.nbd", "vda")
    assert one != Names.of("/run/holdfast/g.nbd", "vdb")
    assert one != Names.of("/run/other/g.nbd", "vda")
    for name in (one.job, one.target, one.filter):
        assert len(name) <= 31
        assert name[0].isalpha()


def test_a_copy_leaves_the_ring_to_the_machine() -> None:
    begin = first_pace(64 * MIB, None)
    assert (begin.speed, begin.piece) == (16 * MIB, 4 * MIB)
    assert first_pace(64 * MIB, 3.0 * MIB).speed == 3 * MIB
    assert first_pace(8 * MIB, None).piece == MIB
    full, empty = replace(TAP, ring_used_bytes=40 * MIB), TAP
    half = replace(TAP, ring_used_bytes=20 * MIB)
    assert pace(16 * MIB, full, None) == 8 * MIB
    assert pace(16 * MIB, half, None) == 16 * MIB
    assert pace(16 * MIB, empty, None) == 24 * MIB
    assert pace(1000 * MIB, empty, None) == 128 * MIB
    assert pace(16 * MIB, empty, 5.0 * MIB) == 5 * MIB
    assert pace(MIB, full, None) == MIB
    assert pace(16 * MIB, replace(empty, state="dirty"), None) == 8 * MIB
