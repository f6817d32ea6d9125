"""One agent's session: what comes in is judged, gathered, committed and acknowledged.

The connection's callbacks only judge and gather; the committer stores. A session ends once, for one
reason: the first. What was validly received is committed before CLOSE leaves, unless the chain is
not ours any more or the store failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from host_agent.wire import limits
from host_agent.wire.errors import ChainBroken, HoldfastError, LimitExceeded, WireError
from host_agent.wire.failpoints import failpoint
from host_agent.wire.frame import FrameHeader
from host_agent.wire.message import (
    VERSION,
    Close,
    CommitNow,
    Fetch,
    Hello,
    Message,
    Probe,
    Probed,
    Received,
    Stored,
    Throttle,
    Welcome,
    pack,
)
from host_agent.wire.names import Identity
from host_agent.wire.record import State
from host_agent.wire.segment import SegmentInfo
from workers.ingest.batch import ReceivedFrame
from workers.ingest.chain import ChainWriter, Fenced, WriterName
from workers.ingest.commit import ClaimedStream, Committer
from workers.ingest.decide import Admitted, Begin, Peer, StoredKey, admit, decide_begin
from workers.ingest.errors import CloseCode, PeerLeft, SessionEnded
from workers.ingest.facts import StreamFacts
from workers.ingest.gate import FrameGate, StreamPoint, Verdict
from workers.ingest.parser import Taking
from workers.ingest.readback import Readback
from workers.ingest.rpo import Moment
from workers.ingest.tools import Line, Registry, Tools
from workers.journal.errors import BoundaryDamaged
from workers.storage.errors import StoreError

#: Unstored bytes that an agent may have sent: the open and the committing segment, and as much
#: again on its way, so that a commit's latency never idles the line.
WINDOW_BYTES = 4 * limits.SEGMENT_BYTES_TARGET

#: RECEIVED is advisory: one in so many bytes.
_RECEIVED_EVERY_BYTES = 4 * limits.MIB

#: Salts of a stream's earlier connections that must not come back.
_SALTS_MAX = 64

#: An agent is told its part of the quota anew when it changed by more than this.
_PART_CHANGE_MIN = 0.05
_SMOOTHING = 0.25

#: Answers that an agent does not read. More means that it is stuck.
_UNREAD_BYTES_MAX = 256 * 1024 + limits.FETCH_BYTES_MAX


@dataclass
class _Writing:
    """A session after WELCOME."""

    gate: FrameGate
    facts: StreamFacts
    committer: Committer
    readback: Readback
    epoch: int


class Session:
    """From an authorised connection to its end. `run` is its life; the rest are events."""

    def __init__(self, peer: Peer, line: Line, tools: Tools, registry: Registry) -> None:
        self._peer = peer
        self._line = line
        self._tools = tools
        self._registry = registry
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._reason: HoldfastError | None = None
        self._ended = asyncio.Event()
        self._admitted: Admitted | None = None
        self._writing: _Writing | None = None
        self._waiting_length: int | None = None
        self._untold_bytes = 0
        self._tally = 0
        self._sent = 0.0
        self._part = 0
        self._heard_at = tools.clock.monotonic()
        self.finished = asyncio.Event()

    @property
    def peer(self) -> Peer:
        """Who is there."""
        return self._peer

    @property
    def identity(self) -> Identity | None:
        """Which stream, once HELLO was admitted."""
        return self._admitted.identity if self._admitted else None

    @property
    def is_writing(self) -> bool:
        """Whether frames are taken."""
        return self._writing is not None and self._reason is None

    def sent_lately(self, seconds: float) -> float:
        """Bytes a second, smoothed; to be asked so often. One frame may fill a second or more."""
        tally, self._tally = self._tally, 0
        self._sent += (tally / seconds - self._sent) * _SMOOTHING
        return self._sent

    def throttle(self, bytes_per_second: int) -> None:
        """Tell the agent its part of the tenant's quota; 0: there is none any longer."""
        if abs(bytes_per_second - self._part) > self._part * _PART_CHANGE_MIN:
            self._part = bytes_per_second
            self._line.write(pack(Throttle(bytes_per_second, "The tenant's quota.")))

    # --- life

    async def run(self) -> None:
        """Live until the end; then the connection is closed. Only defects are raised."""
        watch, work, ended = (
            asyncio.create_task(part) for part in (self._watch(), self._work(), self._ended.wait())
        )
        try:
            await asyncio.wait({watch, work, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # commit what is there, but not for ever
                await asyncio.wait({work}, timeout=self._tools.timing.flush_seconds_max)
        finally:
            for task in (watch, work, ended):
                task.cancel()
            results = await asyncio.gather(watch, work, ended, return_exceptions=True)
            self._say_goodbye()
            self.finished.set()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def end(self, reason: HoldfastError) -> None:
        """End for this reason, unless there is one already."""
        if self._reason is not None:
            return
        self._reason = reason
        self._line.pause()
        if self._writing is not None:
            self._writing.committer.close()
        if not self._hello.done():
            self._hello.set_exception(reason)
            self._hello.exception()  # whether or not anybody waits for it
        self._ended.set()

    def put_out(self) -> None:
        """The rules changed, and its host or its group is not allowed any more.

        Nothing that waits is committed: a host that was shut out may not add to the journal.
        """
        self.end(
            SessionEnded(CloseCode.NOT_AUTHORISED, "This certificate does not allow this stream.")
        )
        if self._writing is not None:
            self._writing.committer.drop()

    def _say_goodbye(self) -> None:
        if self._writing is not None:
            self._writing.committer.release()
            self._writing.readback.close()
            if self._writing.facts.epoch == self._writing.epoch:
                self._writing.facts.connected = False
        reason = self._reason or PeerLeft("The session was stopped.")
        if isinstance(reason, SessionEnded):
            self._line.write(pack(_close_of(reason)))
        if self._writing is not None:
            self._writing.facts.closed(reason.code)
        ordinary = isinstance(reason, PeerLeft) or reason.code in ("stopping", "replaced")
        write = self._tools.log.info if ordinary else self._tools.log.warning
        write(
            "session_ended",
            stream=self._admitted.identity if self._admitted else None,
            host=self._peer.host,
            address=self._peer.address,
            code=reason.code,
            message=str(reason),
        )
        self._line.close()

    async def _work(self) -> None:
        try:
            committer = await self._begin()
            await committer.run()
        except HoldfastError as error:
            self.end(_as_end(error))

    async def _watch(self) -> None:
        """Probes, and the limits on silence and on answers that nobody reads."""
        timing, clock = self._tools.timing, self._tools.clock
        number = 0
        while True:
            await asyncio.sleep(timing.probe_seconds)
            if self._line.unsent() > _UNREAD_BYTES_MAX:
                self.end(SessionEnded(CloseCode.LIMIT, "Answers are not read.", retry_seconds=5.0))
            reads = self._waiting_length is None
            if reads and clock.monotonic() - self._heard_at > timing.idle_seconds_max:
                self.end(SessionEnded(CloseCode.IDLE, "Nothing was heard.", retry_seconds=1.0))
            if self._writing is not None and self._reason is None:
                number += 1
                self._writing.facts.rpo.probed(number, self._now())
                self._line.write(pack(Probe(number)))

    def _now(self) -> Moment:
        return Moment(self._tools.clock.monotonic(), self._tools.clock.wall_ns())

    # --- beginning

    async def _begin(self) -> Committer:
        try:
            async with asyncio.timeout(self._tools.timing.hello_seconds_max):
                hello = await self._hello
        except TimeoutError:
            raise SessionEnded(
                CloseCode.IDLE, "No HELLO came in time.", retry_seconds=1.0
            ) from None
        admitted = self._admitted = admit(hello, self._peer, self._tools.rules)
        failpoint("hello_after_admitted_before_claim")
        facts = await self._registry.take_over(admitted.identity, self)
        await self._wait_turn(facts)
        name = WriterName(admitted.identity, self._tools.token(16))
        chain = ChainWriter(self._tools.store, name, self._tools.clock.wall_ns)
        begin, end = await self._tools.offload(lambda: _claim(chain, admitted, facts.place))
        if self._reason is not None:
            raise self._reason
        resumes = begin == "resume"
        start = StreamPoint(
            end.last_seq if resumes else 0,
            end.record_hash if resumes else bytes(32),
            end.time_newest if resumes else 0,
        )
        stream = ClaimedStream(admitted, chain, facts, needs_key=not resumes)
        committer = Committer(stream, self._tools, self._on_stored, self._on_room)
        gate = FrameGate(admitted.generation, start, frozenset(facts.last_salts))
        _enter(facts, admitted, end, start.seq)
        readback = Readback(admitted.identity, facts, self._tools, self._line)
        self._writing = _Writing(gate, facts, committer, readback, end.epoch)
        failpoint("welcome_after_claim_before_sent")
        self._line.write(pack(_welcome(begin, end)))
        self._tools.log.info(
            "session_began",
            stream=admitted.identity,
            address=self._peer.address,
            begin=begin,
            epoch=end.epoch,
            place=end.place,
            stored=start.seq,
        )
        return committer

    async def _wait_turn(self, facts: StreamFacts) -> None:
        """An agent that reconnects without end may not fill the chain with epochs."""
        timing, now = self._tools.timing, self._tools.clock.monotonic()
        wait = facts.claim_wait_seconds(now, timing.claim_seconds, timing.claims_at_once_max)
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._ended.wait()
        if self._reason is not None:
            raise self._reason

    # --- events

    def on_heard(self) -> None:
        """Bytes came."""
        self._heard_at = self._tools.clock.monotonic()

    def on_message(self, message: Message) -> None:
        """A JSON message; raises what ends the session."""
        if isinstance(message, Close):
            raise PeerLeft(f"The agent closed with {message.code:.40}: {message.message:.200}")
        if isinstance(message, Hello) and not self._hello.done():
            self._hello.set_result(message)
            return
        writing = self._writing
        if writing is None:
            raise _protocol("A message came before WELCOME was sent.")
        if isinstance(message, Probed):
            self._on_probed(message, writing.facts)
        elif isinstance(message, CommitNow):
            writing.committer.commit_now(message.seq)
        elif isinstance(message, Fetch):
            writing.readback.ask(message)
        else:
            raise _protocol(f"An agent does not send {type(message).__name__} here.")

    def _on_probed(self, message: Probed, facts: StreamFacts) -> None:
        try:
            state = State(message.state)
        except ValueError:
            raise _protocol(f"State {message.state} is unknown.") from None
        if message.generation == facts.generation.hex():
            facts.rpo.stated(message.probe, message.head, state, self._now())

    def on_frame_header(self, header: FrameHeader, length: int) -> Taking:
        """A frame begins: judge it, and find room for it."""
        writing = self._writing
        if writing is None:
            raise _protocol("A frame came before WELCOME was sent.")
        facts = writing.facts
        if writing.gate.judge(header, length) is Verdict.REPEATED:
            facts.counters.frames_repeated += 1
            return Taking.SKIP
        if header.counter == 0:
            facts.last_salts = (*facts.last_salts[1 - _SALTS_MAX :], header.salt)
        if self._takes_room(writing, length):
            return Taking.TAKE
        self._waiting_length = length
        self._line.pause()
        return Taking.WAIT

    def _takes_room(self, writing: _Writing, length: int) -> bool:
        """Take room for a frame; where there is none, `_on_room` is called when there may be."""
        quota, now = self._tools.quota, self._tools.clock.monotonic()
        wait = quota.wait_seconds(now)
        if wait > 0:
            quota.waits += 1
            asyncio.get_running_loop().call_later(wait, self._on_room)
            return False
        if not writing.committer.take_room(length):
            return False
        quota.take(length, now)
        self._tally += length
        return True

    def on_frame(self, frame: ReceivedFrame) -> None:
        """A frame is complete."""
        assert self._writing is not None
        failpoint("frame_after_received_before_added")
        self._writing.committer.add(frame)
        self._untold_bytes += frame.length
        if self._untold_bytes >= _RECEIVED_EVERY_BYTES:
            self._untold_bytes = 0
            self._line.write(pack(Received(frame.header.last_seq)))

    def on_lost(self) -> None:
        """The connection is gone."""
        self.end(PeerLeft("The agent's connection is gone."))

    def on_bad_bytes(self, error: HoldfastError) -> None:
        """The agent sent what ends the session."""
        if isinstance(error, LimitExceeded):
            error = SessionEnded(CloseCode.LIMIT, error.message, hint=error.hint, retry_seconds=5.0)
        elif isinstance(error, WireError):
            error = _protocol(error.message)
        self.end(error)

    def _on_room(self) -> None:
        """There may be room for the frame that waits."""
        length = self._waiting_length
        if length is None or self._writing is None or self._reason is not None:
            return
        if self._takes_room(self._writing, length):
            self._waiting_length = None
            self.on_heard()
            self._line.resume()

    def _on_stored(self, info: SegmentInfo) -> None:
        failpoint("stored_after_commit_before_told")
        self._line.write(
            pack(
                Stored(
                    info.epoch,
                    info.generation.hex(),
                    info.last_seq,
                    info.record_hash.hex(),
                    info.place,
                )
            )
        )


def _claim(chain: ChainWriter, admitted: Admitted, hint: int) -> tuple[Begin, SegmentInfo]:
    """In a thread: look at the chain, decide, claim, and decide again on what was found then."""
    key = chain.find_key(admitted.generation, admitted.key_object)
    decide_begin(admitted, chain.find_end(hint), key)
    failpoint("end_after_found_before_claim")
    end = chain.claim()
    failpoint("claim_after_made_before_decided")
    if key is not StoredKey.SAME:
        key = chain.find_key(admitted.generation, admitted.key_object)
    return decide_begin(admitted, end, key), end


def _enter(facts: StreamFacts, admitted: Admitted, end: SegmentInfo, stored: int) -> None:
    facts.connected = True
    facts.counters.sessions += 1
    facts.generation, facts.epoch, facts.place = admitted.generation, end.epoch, end.place
    facts.received = facts.stored = stored
    facts.stored_time_ns = end.time_newest if stored else 0
    facts.commit_seconds = admitted.commit_seconds
    facts.rpo.began(stored)


def _welcome(begin: Begin, end: SegmentInfo) -> Welcome:
    return Welcome(
        version=VERSION,
        epoch=end.epoch,
        generation=end.generation.hex() if any(end.generation) else None,
        stored=end.last_seq,
        record_hash=end.record_hash.hex(),
        state=end.state,
        place=end.place,
        window_bytes=WINDOW_BYTES,
        frame_bytes_max=limits.MESSAGE_BYTES_MAX,
        begin=begin,
    )


def _protocol(what: str) -> SessionEnded:
    return SessionEnded(CloseCode.PROTOCOL, what, retry_seconds=5.0)


def _as_end(error: HoldfastError) -> HoldfastError:
    """The end of the session that follows from what the chain or the store said."""
    if isinstance(error, SessionEnded | PeerLeft):
        return error
    if isinstance(error, Fenced):
        return SessionEnded(CloseCode.FENCED, error.message, hint=error.hint)
    if isinstance(error, StoreError):
        return SessionEnded(
            CloseCode.STORE_ERROR,
            error.message,
            hint=error.hint,
            retry_seconds=5.0 if error.retryable else None,
        )
    if isinstance(error, ChainBroken | WireError | BoundaryDamaged):
        return SessionEnded(CloseCode.CHAIN_BROKEN, error.message, hint=error.hint)
    raise error


def _close_of(reason: SessionEnded) -> Close:
    return Close(reason.close.value, reason.message, reason.hint, reason.retry_seconds)
