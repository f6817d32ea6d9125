"""The bugs of formats, keys, durability and status."""

from __future__ import annotations

from tests.planted.bug import Bug, Edit, bug

_COMMIT = "workers/ingest/commit.py"
_GATE = "workers/ingest/gate.py"
_RPO = "workers/ingest/rpo.py"
_SEAL = "host_agent/wire/seal.py"
_SEGMENT = "host_agent/wire/segment.py"
_KEYS = "host_agent/wire/keys.py"
_LOCAL = "workers/storage/local.py"
_RETENTION = "workers/journal/retention.py"
_RING = "host_agent/stream/ring.py"

_DAMAGE = [
    bug(
        "a restored payload's checksum is not compared",
        "I10",
        (
            "workers/journal/opening.py",
            "    if span_crc(crcs, lengths) == crc32c(plain):\n",
            "    if True:\n",
        ),
        "tests/journal/test_corruption.py::test_data_that_differs_from_the_taps_checksum_is_named",
    ),
    bug(
        "a payload of the ring is not compared with its checksum",
        "I10",
        (
            _RING,
            "        if google_crc32c.value(data) != crc.span_crc(crcs, lengths):\n",
            "        if False:\n",
        ),
        "tests/stream/test_ring_reader.py::test_a_changed_payload_is_found_and_named",
    ),
    bug(
        "the lap of an entry is not compared",
        "I10",
        (
            _RING,
            '        if (entries["seq"] != expected).any() or (entries["lap"] != laps).any():\n',
            "        if False:\n",
        ),
        "tests/stream/test_ring_reader.py::test_an_entry_of_the_lap_before_is_not_taken",
    ),
    bug(
        "a frame header's checksum is not compared",
        "I10",
        (
            "host_agent/wire/frame.py",
            "        if crc32c(head[:252] + bytes(4) + head[256:]) != crc:\n",
            "        if False:\n",
        ),
        "tests/wire/test_frames.py::test_any_changed_bit_of_a_header_is_found",
    ),
    bug(
        "a length is trusted before its limit",
        "I12",
        ("host_agent/wire/message.py", "    if length > limit:\n", "    if False:\n"),
        "tests/wire/test_messages.py::test_lengths_are_bounded_before_anything_is_allocated",
    ),
    bug(
        "a journal that lost its end is whole",
        "I10",
        (
            "workers/journal/reader.py",
            "    place = journal.newest.place if journal.newest else 0\n    return JournalCut(",
            "    place = journal.newest.place if journal.newest else 0\n"
            "    return None and JournalCut(",
        ),
        "tests/journal/test_corruption.py::test_a_lost_end_is_named_because_it_was_stated",
    ),
    bug(
        "an exported image is not read back",
        "I3",
        (
            "workers/restore/export.py",
            "            image.verify(progress.advance, digest=options.digest)\n",
            "",
        ),
        "tests/restore/test_export.py::test_what_the_disk_changed_is_found_by_reading_back",
    ),
    bug(
        "a segment's hash is not compared",
        "I10",
        (_SEGMENT, "    if blake3(hashed).digest() != info.hash:\n", "    if False:\n"),
        "tests/wire/test_segments.py::test_a_forged_trailer_is_found_by_the_hash",
    ),
    bug(
        "the hash of the segment before is not compared",
        "I10",
        (_SEGMENT, "    if info.previous != before.hash:\n", "    if False:\n"),
        "tests/wire/test_segments.py::test_what_does_not_follow_is_refused",
    ),
    bug(
        "a restore stops silently at the first missing object",
        "I10",
        (
            "workers/journal/chain.py",
            "        if later is None:\n",
            "        if later is None or True:\n",
        ),
        "tests/journal/test_corruption.py"
        "::test_a_segment_lost_in_the_middle_is_named_and_nothing_beyond_it_is_served",
    ),
    Bug(
        "a group's marker is a checkpoint without its commit",
        "I5",
        (
            Edit(
                "workers/journal/marks.py",
                "if mark.scope == SCOPE_STREAM or commits.get(mark.id) == self._seq_of(mark.row):",
                "if mark.id is not None:",
            ),
            Edit(
                "workers/journal/marks.py",
                "            and (mark.scope == SCOPE_STREAM or "
                "commits.get(mark.id) == self._seq_of(mark.row))\n",
                "",
            ),
        ),
        ("tests/journal/test_points.py::test_a_group_marker_without_its_commit_is_nothing",),
    ),
    bug(
        "a marker inside a sync is a checkpoint",
        "I3",
        (
            "workers/journal/timeline.py",
            "        if generation.open_sync is not None:\n            return\n",
            "",
        ),
        "tests/journal/test_reader.py::test_a_mark_inside_a_sync_is_no_checkpoint",
    ),
]

_KEY_BUGS = [
    bug(
        "the salt is the same after a restart",
        "I16",
        (
            "host_agent/stream/greeting.py",
            "    salt = shared.means.random.bytes(32)\n",
            "    salt = ring.generation * 2\n",
        ),
        "tests/stream/test_stream.py::test_no_salt_and_counter_is_used_twice_over_resends",
    ),
    bug(
        "the counter of nonces stands still",
        "I16",
        (
            _SEAL,
            "        counter, self._counter = self._counter, self._counter + 1\n",
            "        counter = self._counter\n",
        ),
        "tests/restore/test_key_hygiene.py::test_no_key_and_nonce_twice_in_a_journal",
    ),
    bug(
        "ingest takes a salt that was used before",
        "I16",
        (_GATE, "            if header.salt in self._used_salts:\n", "            if False:\n"),
        "tests/ingest/test_parts.py::TestGate::test_used_salt_is_refused",
    ),
    bug(
        "the tenant is not authenticated with the data",
        "I9",
        (
            _SEAL,
            '    return b"HFAD1" + bytes([part]) + identity.seal_bytes + header\n',
            '    return b"HFAD1" + bytes([part]) + header\n',
        ),
        "tests/wire/test_seal.py::test_frames_of_another_stream_do_not_open_even_with_its_key",
    ),
    bug(
        "a key's id is not compared",
        "I16",
        (_KEYS, "    if found.tenant_key_id != tenant_key.id:\n", "    if False:\n"),
        "tests/wire/test_keys.py::test_another_tenants_key_opens_nothing",
    ),
    bug(
        "the key commitment is not compared",
        "I16",
        (
            _SEAL,
            "        if not hmac.compare_digest(commitment, header.commitment):\n",
            "        if False:\n",
        ),
        "tests/wire/test_seal.py::test_another_key_is_named_as_such",
    ),
    bug(
        "another stream's data key is taken",
        "I9",
        (
            _KEYS,
            "    if stated != (identity.tenant, identity.group, identity.host, "
            "generation.hex()):\n",
            "    if False:\n",
        ),
        "tests/wire/test_keys.py::test_key_objects_of_another_stream_are_refused",
    ),
]

_DURABILITY = [
    bug(
        "an object is not synced before it has its name",
        "I2",
        (
            _LOCAL,
            "                os.fsync(descriptor)\n"
            '                failpoint("object_after_sync_before_link")\n',
            '                failpoint("object_after_sync_before_link")\n',
        ),
        "tests/contract/test_power_cuts.py::test_what_was_acknowledged_survives_every_power_cut",
    ),
    bug(
        "the directory is not synced after a name appeared",
        "I2",
        (
            _LOCAL,
            "            self._sync_directories(target.parent)\n"
            "            return Created.CREATED\n",
            "            return Created.CREATED\n",
        ),
        "tests/contract/test_power_cuts.py::test_what_was_acknowledged_survives_every_power_cut",
    ),
    bug(
        "a name that exists is believed to be durable",
        "I2",
        (
            _LOCAL,
            "                self._sync_directories(target.parent)\n"
            "                return Created.EXISTS\n"
            "            return self._put",
            "                return Created.EXISTS\n            return self._put",
        ),
        "tests/contract/test_power_cuts.py"
        "::test_an_object_that_exists_is_durable_before_it_is_told",
    ),
    bug(
        "a failed sync is forgotten",
        "I2",
        (
            _LOCAL,
            '            self._failed_sync = f"{_errno_name(error)} on {directory}"\n',
            "",
        ),
        "tests/contract/test_faults.py::test_failed_sync_of_a_directory_is_never_forgotten",
    ),
]

_COLLECTION = [
    bug(
        "collection does not wait for the grace",
        "I15",
        (
            _RETENTION,
            "        if now - boundary.set_at < wait * NANOSECONDS:\n",
            "        if False:\n",
        ),
        "tests/journal/test_fold_crashes.py::test_nothing_goes_before_the_grace_is_over",
    ),
    bug(
        "a shorter window is collected as soon as any other",
        "I15",
        (
            _RETENTION,
            "        wait = max(grace_seconds, REDUCED_SECONDS) if reduced else grace_seconds\n",
            "        wait = grace_seconds\n",
        ),
        "tests/journal/test_retention.py::test_standing",
    ),
    bug(
        "retention follows a clock that jumped",
        "I15",
        (
            _RETENTION,
            "    if store_at is not None and now > store_at + AHEAD_SECONDS_MAX * NANOSECONDS:\n",
            "    if False:\n",
        ),
        "tests/journal/test_retention.py::test_now",
    ),
    bug(
        "collection takes one place too many",
        "I15",
        (
            "workers/journal/collect.py",
            "            self._take(name, size, place is not None and place < first)\n",
            "            self._take(name, size, place is not None and place <= first)\n",
        ),
        "tests/journal/test_fold.py::test_folded_again_and_again_then_collected",
    ),
    bug(
        "collection takes what a layer still holds",
        "I15",
        (
            "workers/journal/collect.py",
            "self._take(name, size, over and name not in needed)",
            "self._take(name, size, over)",
        ),
        "tests/journal/test_fold.py::test_folded_again_and_again_then_collected",
    ),
]

_STATUS = [
    bug(
        "the recovery point follows what was received",
        "I11",
        (
            _COMMIT,
            "        self._facts.received = frame.header.last_seq\n",
            "        self._facts.received = frame.header.last_seq\n"
            "        self._facts.rpo.stored(frame.header.last_seq)\n",
        ),
        "tests/ingest/test_simulated.py::test_what_is_only_received_is_not_safe",
    ),
    bug(
        "a tap that lost track makes a moment safe",
        "I11",
        (_RPO, "        if state is not State.RECORDING:\n            return\n", ""),
        "tests/ingest/test_rpo.py::TestTracker::test_tap_that_has_lost_track_makes_nothing_safe",
    ),
    bug(
        "the agent's recovery point counts while dirty",
        "I11",
        (
            "host_agent/stream/progress.py",
            "        if state.state != State.RECORDING:\n            return\n",
            "",
        ),
        "tests/stream/test_progress.py::test_dirty_and_syncing_advance_nothing",
    ),
    bug(
        "a late answer to a probe is told as new",
        "I11",
        (
            "host_agent/stream/connection.py",
            "        if answer.asked_at is not None and self._is_stale(answer.asked_at):\n",
            "        if False:\n",
        ),
        "tests/stream/test_stream.py::test_a_probe_is_not_answered_with_an_old_state",
    ),
    bug(
        "memory for frames has no bound",
        "I12",
        (
            "workers/ingest/budget.py",
            "        if self.held + length > self._length_max and not holds_nothing:\n",
            "        if False:\n",
        ),
        "tests/ingest/test_parts.py::TestBudget::test_held_is_bounded_and_nobody_starves",
    ),
]


DATA_BUGS: tuple[Bug, ...] = (*_DAMAGE, *_KEY_BUGS, *_DURABILITY, *_COLLECTION, *_STATUS)
