"""The bugs of ingest and agent: what somebody could get wrong."""

from __future__ import annotations

from tests.planted.bug import Bug, bug
from tests.planted.catalogue_data import DATA_BUGS
from tests.planted.catalogue_tap import TAP_BUGS

_CHAIN = "workers/ingest/chain.py"
_COMMIT = "workers/ingest/commit.py"
_GATE = "workers/ingest/gate.py"
_DECIDE = "workers/ingest/decide.py"
_SEGMENT = "host_agent/wire/segment.py"
_LEDGER = "host_agent/stream/ledger.py"
_RETRY = "workers/storage/retry.py"

_ACKNOWLEDGE = [
    bug(
        "acknowledged before it is put",
        "I2",
        (
            _CHAIN,
            "        if not self._create(info.place, data):\n"
            "            raise self._why_taken(info.place)\n",
            "        import threading\n"
            "        threading.Timer(0.3, self._create, (info.place, data)).start()\n",
        ),
        "tests/ingest/test_crashes.py::test_killed_in_a_commit",
    ),
    bug(
        "acknowledged before its place is known to be ours",
        "I7",
        (
            _CHAIN,
            "        if not self._create(info.place, data):\n"
            "            raise self._why_taken(info.place)\n",
            "        self._create(info.place, data)\n",
        ),
        "tests/ingest/test_ownership.py::test_zombie_that_wakes_up_cannot_append",
    ),
    bug(
        "acknowledged when the request timed out",
        "I2",
        (
            _RETRY,
            "                unsure = True\n                raise\n",
            "                return Created.CREATED\n",
        ),
        "tests/contract/test_faults.py::test_unknown_outcome_of_our_own_create_is_ours",
    ),
    bug(
        "taken is success without a comparison",
        "I7",
        (
            _CHAIN,
            "        if not created and self._store.get(name) != data:\n",
            "        if False:\n",
        ),
        "tests/ingest/test_ownership.py::test_zombie_that_wakes_up_cannot_append",
    ),
    bug(
        "taken after a doubt is success without a comparison",
        "I7",
        (
            _RETRY,
            "if outcome is Created.EXISTS and unsure and self._holds(name, data):",
            "if outcome is Created.EXISTS and unsure:",
        ),
        "tests/contract/test_faults.py::test_unknown_outcome_under_a_name_that_another_took",
    ),
    bug(
        "a doubt is forgotten when a later try is refused",
        "I2",
        (
            _RETRY,
            "            if unsure:  # whatever the last answer was, an earlier request may still "
            "arrive\n",
            "            if unsure and error.retryable and False:\n",
        ),
        "tests/contract/test_faults.py::test_doubt_outlasts_a_later_refusal",
    ),
    bug(
        "the last partial segment is dropped",
        "I2",
        (
            _COMMIT,
            "        return self._closing or full or ",
            "        return full or ",
        ),
        "tests/ingest/test_flow.py::test_what_was_received_is_stored_when_the_agent_vanishes",
        "tests/ingest/test_flow.py::test_orderly_stop_commits_what_it_has_and_says_so",
    ),
    bug(
        "ring space is given back when it is sent",
        "I2",
        (
            "host_agent/stream/connection.py",
            "        counters.frames_sent += 1\n",
            "        counters.frames_sent += 1\n"
            "        self._to_free = Freed(frame.last_seq, frame.anchor, frame.anchor_hash)\n"
            "        self._freeing.notify()\n",
        ),
        "tests/stream/test_stream.py::test_nothing_is_freed_before_it_is_stored",
    ),
    bug(
        "an acknowledgement of an older epoch counts",
        "I7",
        (
            _LEDGER,
            "if message.epoch != self.epoch or message.generation != self._generation:",
            "if message.generation != self._generation:",
        ),
        "tests/stream/test_ledger.py"
        "::test_an_acknowledgement_of_another_epoch_or_generation_frees_nothing",
    ),
    bug(
        "an acknowledgement with another hash counts",
        "I2",
        (_LEDGER, "if newest.record_hash.hex() != message.record_hash:", "if False:"),
        "tests/stream/test_ledger.py::test_another_record_hash_frees_nothing",
    ),
    bug(
        "a checkpoint is announced before it is stored",
        "I3",
        (
            "host_agent/stream/stream.py",
            "        while not self._has_stored(generation, seq):\n",
            "        while False:\n",
        ),
        "tests/agent/test_commands.py::test_a_checkpoint_that_is_not_stored_in_time_says_so",
    ),
]

_OWNERSHIP = [
    bug(
        "the epoch is not checked by who reads a chain",
        "I7",
        (
            _SEGMENT,
            "    if info.epoch < before.epoch or (info.epoch == before.epoch) == claims:\n",
            "    if False:\n",
        ),
        "tests/wire/test_segments.py::test_what_does_not_follow_is_refused",
    ),
    bug(
        "an equal epoch fences",
        "I7",
        (
            _CHAIN,
            "        if other.epoch > self._epoch:\n",
            "        if other.epoch >= self._epoch:\n",
        ),
        "tests/ingest/test_chain_writer.py"
        "::test_a_stranger_of_our_own_epoch_is_a_broken_store_and_no_fence",
    ),
    bug(
        "a claim keeps the epoch",
        "I7",
        (_CHAIN, "epoch=end.epoch + 1 if end else 1,", "epoch=end.epoch if end else 1,"),
        "tests/ingest/test_flow.py::test_resume_goes_on_where_the_store_ends",
    ),
    bug(
        "a lost place is the end of the chain for a writer",
        "I10",
        (
            _CHAIN,
            "                if not self._exists(expected):\n",
            "                if False:\n",
        ),
        "tests/ingest/test_ownership.py::test_lost_object_stops_the_stream_by_name",
    ),
    bug(
        "an ended generation may return",
        "I7",
        (
            _DECIDE,
            "    if key is StoredKey.MISSING or never_began:\n",
            "    if True:\n",
        ),
        "tests/ingest/test_parts.py::TestBeginning::test_every_end_and_key",
    ),
    bug(
        "names are taken from HELLO, not from the certificate",
        "I9",
        (
            _DECIDE,
            "    if (hello.tenant, hello.host) != (peer.tenant, peer.host):\n",
            "    if False:\n",
        ),
        "tests/ingest/test_parts.py::TestBeginning"
        "::test_admission_takes_the_names_from_the_certificate",
    ),
    bug(
        "a stream that somebody else has is fought for",
        "I7",
        (
            "host_agent/stream/session.py",
            "        if close.code in _TAKEN:\n",
            "        if close.code in ():\n",
        ),
        "tests/stream/test_session.py::test_each_failure_has_its_action",
    ),
]

_SEQUENCES = [
    bug(
        "the agent resumes one position late",
        "I2",
        (
            "host_agent/stream/session.py",
            "return Resume(welcome.stored + 1, ",
            "return Resume(welcome.stored + 2, ",
        ),
        "tests/stream/test_session.py"
        "::test_a_position_that_the_ring_has_is_resumed_if_the_hash_is_ours",
    ),
    bug(
        "ingest resumes one position late",
        "I2",
        (
            "workers/ingest/session.py",
            "            end.last_seq if resumes else 0,\n",
            "            end.last_seq + 1 if resumes else 0,\n",
        ),
        "tests/ingest/test_flow.py::test_resume_goes_on_where_the_store_ends",
    ),
    bug(
        "a gap is accepted",
        "I4",
        (
            _GATE,
            "        if header.first_seq == self._next_seq:\n",
            "        if header.first_seq >= self._next_seq:\n",
        ),
        "tests/ingest/test_parts.py::TestGate::test_what_does_not_continue_ends_the_session",
    ),
    bug(
        "a duplicate with another content is accepted",
        "I10",
        (_GATE, "        if known != header.record_hash:\n", "        if False:\n"),
        "tests/ingest/test_parts.py::TestGate::test_repeat_is_recognised_by_its_hash",
    ),
    bug(
        "the journal's hash is not compared at resume",
        "I10",
        (
            "host_agent/stream/prepare.py",
            "    if begin.verify is not None and running.digest() != begin.verify:\n",
            "    if False:\n",
        ),
        "tests/stream/test_stream.py::test_journal_with_another_hash_begins_a_new_generation",
    ),
    bug(
        "the wall clock orders segments",
        "I4",
        (
            _CHAIN,
            "        return max(self._wall_ns(), self._end.committed_at if self._end else 0)\n",
            "        return self._wall_ns()\n",
        ),
        "tests/ingest/test_chain_writer.py::test_commits_do_not_run_back_with_the_wall_clock",
    ),
    bug(
        "records of an unknown kind are passed over",
        "I10",
        (
            "host_agent/wire/record.py",
            '    _refuse(records, ~_KNOWN[op], "is of an unknown kind that may not be skipped")\n',
            "",
        ),
        "tests/wire/test_records.py::test_unknown_kinds_below_128_are_refused",
    ),
]


BUGS: tuple[Bug, ...] = (*_ACKNOWLEDGE, *_OWNERSHIP, *_SEQUENCES, *DATA_BUGS, *TAP_BUGS)
