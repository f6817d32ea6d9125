"""The bugs of the tap: what could go wrong beside a guest's write. Each needs a compilation."""

from __future__ import annotations

from tests.planted.bug import Bug, bug

_SRC = "host_agent/tap/src"
_CORE = f"{_SRC}/group/core.rs"
_OPS = f"{_SRC}/group/ops.rs"
_SYNC = f"{_SRC}/group/sync.rs"
_HOLD = f"{_SRC}/group/hold.rs"
_INFLIGHT = f"{_SRC}/inflight.rs"
_STREAM = f"{_SRC}/stream.rs"
_RING = f"{_SRC}/ring.rs"

_FAULTS = "tests/tap/test_faults.py"

TAP_BUGS: tuple[Bug, ...] = (
    bug(
        "overlapping writes are not locked",
        "I4",
        (_INFLIGHT, "(self.is_write || is_write) &&", "self.is_write != is_write &&"),
        f"{_FAULTS}::test_slow_writes_keep_their_order",
    ),
    bug(
        "a refused write is recorded",
        "I1",
        (
            _OPS,
            "(_, Some(code)) => self.conclude(id, |core, request, _| core.refused(request, code)),",
            "(_, Some(code)) => self.conclude(id, |core, request, buffer| {\n"
            "                if let Some(bytes) = buffer.as_deref() {\n"
            "                    let length = request.header.length as usize;\n"
            "                    core.wrote(request, &bytes[..length.min(bytes.len())]);\n"
            "                }\n"
            "                core.refused(request, code)\n"
            "            }),",
        ),
        f"{_FAULTS}::test_a6_a_refused_write_is_never_treated_as_committed",
    ),
    bug(
        "what a refused write left is not read again",
        "I3",
        (
            _CORE,
            "                stream.disk_differs(disk.number, request.range(), "
            "Cause::DiskError);\n",
            "                let _ = (stream, Cause::DiskError);\n",
        ),
        f"{_FAULTS}::test_a_short_write_that_then_fails_is_refused",
        "tests/tap/test_faults.py::test_a_full_file_system",
    ),
    bug(
        "a durable write is done as any other",
        "I1",
        (
            _OPS,
            "            Kind::Write => {\n"
            "                let is_durable = op.is_fua() && disk.io.mode != IoMode::Memory;\n",
            "            Kind::Write => {\n                let is_durable = false;\n",
        ),
        "tests/tap/test_durable.py::test_a_fua_write_is_synced_before_its_answer",
    ),
    bug(
        "a flush is answered without a sync",
        "I1",
        (
            f"{_SRC}/engine/threads.rs",
            "IoKind::Sync => file.sync_data().map(|()| 0),",
            "IoKind::Sync => Ok(0),",
        ),
        "tests/tap/test_durable.py::test_a_flush_is_a_sync_before_its_answer",
    ),
    bug(
        "a failed flush is forgotten",
        "I1",
        (f"{_SRC}/group/flush.rs", "        disk.flush.has_failed = true;\n", ""),
        f"{_FAULTS}::test_a_failed_flush_stays_failed",
    ),
    bug(
        "a trim is not recorded",
        "I4",
        (
            _CORE,
            "            stream.note(op, disk.number, offset, length, flags, "
            "self.clock.wall_ns);\n",
            "            if op != RecordOp::Trim {\n"
            "                stream.note(op, disk.number, offset, length, flags, "
            "self.clock.wall_ns);\n"
            "            }\n",
        ),
        "tests/tap/test_order.py::test_overlapping_requests_of_many_clients",
    ),
    bug(
        "long zeroes are cut to 32 bits",
        "I3",
        (_SYNC, "data).min(start + ZERO_MAX);", "data);\n            let _ = ZERO_MAX;"),
        "tests/tap/test_attach.py::test_a_disk_of_64_tib",
    ),
    bug(
        "the ring's room is not checked",
        "I2",
        (
            _RING,
            "        if self.index_used() + 1 > self.geometry.index_capacity - kept.0\n"
            "            || end - self.at.payload_freed > self.geometry.payload_capacity "
            "- kept.1\n",
            "        if self.index_used() + 1 > u64::MAX - kept.0 || end > u64::MAX - kept.1\n",
        ),
        f"{_FAULTS}::test_an_agent_that_stops_and_goes_on",
    ),
    bug(
        "an orderly stop is claimed while running",
        "I2",
        (
            _STREAM,
            "self.ring.set_mood(Mood { is_clean, state, cause, last_good });",
            "let _ = is_clean;\n"
            "        self.ring.set_mood(Mood { is_clean: true, state, cause, last_good });",
        ),
        "tests/tap/test_clean_stop.py::test_a_tap_never_claims_an_orderly_stop_while_it_runs",
    ),
    bug(
        "an orderly stop is believed twice",
        "I2",
        (
            f"{_SRC}/group/open.rs",
            "let clean = state.clean.take();",
            "let clean = state.clean.clone();",
        ),
        "tests/tap/test_clean_stop.py::test_an_orderly_stop_is_believed_once",
    ),
    bug(
        "a dirty mark is gone before its data is in the ring",
        "I3",
        (
            _SYNC,
            "            // The interval is over: what was read may not be used in the next.\n"
            "            return stream.mark_to_read(number, op.offset..end);\n",
            "            return;\n",
        ),
        "tests/tap/test_marks.py::test_a_read_of_an_interval_that_failed_is_done_again",
    ),
    bug(
        "a full ring drops without a mark",
        "I3",
        (
            _STREAM,
            "        self.mark_to_read(disk, offset..offset + length);\n        crash::",
            "        let _ = (disk, offset, length);\n        crash::",
        ),
        f"{_FAULTS}::test_an_agent_that_stops_and_goes_on",
    ),
    bug(
        "a sync block is as new as its arrival",
        "I4",
        (
            _SYNC,
            "                stream.sync_data(number, offset, &buffer[at..at + length], before, "
            "now)\n",
            "                stream.sync_data(number, offset, &buffer[at..at + length], "
            "stream.ring.head().max(before), now)\n",
        ),
        f"{_FAULTS}::test_a_sync_block_loses_to_what_was_recorded_after_its_read_began",
    ),
    bug(
        "a sync ends while a write of its last read is in flight",
        "I3",
        (
            _SYNC,
            "        let is_waiting = self.sync.reads > 0\n"
            "            || self.ops.iter().any(|(_, op)| op.is_change() && op.serial <= "
            "barrier);\n",
            "        let is_waiting = self.sync.reads > 0 && barrier > 0;\n",
        ),
        "tests/tap/test_marks.py::test_a_sync_ends_after_the_writes_that_its_reads_may_have_seen",
    ),
    bug(
        "a hold has no timer",
        "I6",
        (
            _HOLD,
            "if self.holds.deadline_ns().is_some_and(|deadline| deadline <= now) {",
            "if self.holds.deadline_ns().is_some_and(|deadline| deadline == now) {",
        ),
        "tests/tap/test_hold.py::test_the_taps_own_timer_ends_a_hold",
    ),
    bug(
        "a hold lets completions pass",
        "I5",
        (
            _HOLD,
            "let is_told = !self.holds.is_active() || !request.header.is_recorded();",
            "let is_told = self.holds.count < u64::MAX;",
        ),
        "tests/tap/test_hold.py::test_completions_wait_for_release",
    ),
    bug(
        "a read sees what a hold withholds",
        "I5",
        (
            _INFLIGHT,
            "            || (!is_write && self.withheld.overlaps(range))\n",
            "",
        ),
        "tests/tap/test_hold.py::test_a_read_does_not_see_what_was_not_let_go",
    ),
    bug(
        "the stream's time follows the wall clock back",
        "I4",
        (
            _STREAM,
            "        self.last_time = self.last_time.max(now);\n        self.last_time\n",
            "        self.last_time = now;\n        self.last_time\n",
        ),
        "tests/tap/test_clean_stop.py::test_times_do_not_run_back_with_the_wall_clock",
    ),
    bug(
        "a checkpoint is placed inside a sync",
        "I3",
        (
            _STREAM,
            "        if (is_marker && self.state != State::Recording) || self.state == "
            "State::Dirty {\n",
            "        if is_marker && self.state == State::Dirty || self.state == State::Dirty {\n",
        ),
        "tests/tap/test_marks.py::test_no_marker_takes_a_place_inside_a_sync",
    ),
    bug(
        "a hot extent is marked after the write",
        "I2",
        (
            f"{_SRC}/group/marks.rs",
            "        let is_ready = disk.hot.is_ready(&range);\n",
            "        let is_ready = true;\n",
        ),
        "tests/tap/test_hot.py::test_a_host_that_lost_its_power",
    ),
    bug(
        "a request beyond the disk's end is taken",
        "I12",
        (
            f"{_SRC}/nbd/request.rs",
            "            Some(end) if end <= size => Ok(()),\n",
            "            Some(end) if end <= size.max(1 << 62) => Ok(()),\n",
        ),
        "tests/tap/test_protocol.py::test_impossible_writes_are_refused_with_their_data_taken",
    ),
)
