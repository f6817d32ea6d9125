"""HELLO, WELCOME, and what makes a connection out of them."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from host_agent.stream.errors import JournalDiffers, LinkLost, PeerClosed
from host_agent.stream.ledger import Freed
from host_agent.stream.parts import OpenRing, Shared
from host_agent.stream.ports import Link
from host_agent.stream.prepare import Begin, Preparer, make_preparer
from host_agent.stream.session import RingPosition, judge_welcome
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.failpoints import failpoint
from host_agent.wire.message import VERSION, Close, Hello, Welcome, pack

#: WELCOME follows a claim in the object store, which may have to be tried several times.
_WELCOME_SECONDS = 30.0
_GOODBYE_SECONDS = 1.0


async def greet(ring: OpenRing, link: Link, shared: Shared) -> Welcome:
    """Say HELLO, hear WELCOME; PeerClosed, LinkLost or WireError."""
    await link.send([pack(_hello(ring, shared))])
    failpoint("hello_after_sent_before_welcome")
    try:
        async with asyncio.timeout(_WELCOME_SECONDS):
            answer = await link.receive()
    except TimeoutError:
        raise LinkLost(f"{link.address} sent no WELCOME.", retryable=True) from None
    if isinstance(answer, Close):
        raise PeerClosed(answer)
    if not isinstance(answer, Welcome):
        raise WireError(f"Ingest began with {type(answer).__name__} instead of WELCOME.")
    return answer


def _hello(ring: OpenRing, shared: Shared) -> Hello:
    identity, predecessor = shared.settings.identity, ring.opened.predecessor
    return Hello(
        version=VERSION,
        software=shared.settings.software,
        tenant=identity.tenant,
        group=identity.group,
        host=identity.host,
        generation=ring.generation.hex(),
        predecessor=predecessor.hex() if predecessor else None,
        freed=ring.held,
        head=ring.state.head,
        key=msgspec.json.decode(ring.key.wrapped, type=dict[str, object]),
        commit_seconds=shared.settings.commit_seconds,
    )


async def begin(ring: OpenRing, welcome: Welcome, shared: Shared) -> tuple[Preparer, Freed]:
    """Where frames begin, and what is stored before; JournalDiffers, WireError or RingDamaged."""
    position = RingPosition(ring.generation, ring.held, ring.state.head)
    resume = judge_welcome(welcome, position)
    start = Begin(
        ring.anchor,
        ring.anchor_hash,
        resume.first,
        resume.verify,
        resume.state,
        shared.watch,
        ring.spool,
    )
    salt = shared.means.random.bytes(32)
    identity = shared.settings.identity
    async with ring.reading:
        preparer = await shared.means.offload(
            lambda: make_preparer(ring.file, identity, ring.key, salt, start)
        )
    return preparer, Freed(resume.first - 1, *preparer.anchor)


async def say_goodbye(link: Link, error: HoldfastError) -> None:
    """Tell ingest why this connection is of no use. Best effort: the connection ends anyway."""
    if isinstance(error, PeerClosed | LinkLost):
        return
    code = error.code if isinstance(error, JournalDiffers) else "protocol"
    with contextlib.suppress(LinkLost, TimeoutError):
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await link.send([pack(Close(code, error.message, error.hint, 0.0))])
