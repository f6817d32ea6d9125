"""The connection to the data services manager: dialled by the host, made again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from host_agent.control.errors import ManagerLost
from host_agent.stream.errors import CertificateRefused
from host_agent.stream.pace import Backoff
from host_agent.stream.ports import Clock, Random
from host_agent.stream.tunnel import open_tcp
from host_agent.wire import control
from host_agent.wire.control import FromHost, FromManager, Hello, Welcome
from host_agent.wire.errors import HoldfastError, WireError
from host_agent.wire.limits import CONTROL_MESSAGE_BYTES_MAX

_log = logging.getLogger("holdfast.agent")

_CONNECT_SECONDS = 15.0
_WELCOME_SECONDS = 15.0
_CLOSE_SECONDS = 2.0
#: Without a pong for this long the connection is dead.
_PING_SECONDS = 10.0
#: A connection that lasted so long was a good one: the next failure begins with short waits.
_HEALTHY_SECONDS = 30.0
#: What waits to be sent. More is a manager that does not read: the connection ends.
_QUEUE_MAX = 1024


class Ends(Protocol):
    """Whoever the messages are for. Called on the loop; nothing of it may take long."""

    def hello(self) -> Hello: ...
    def on_welcome(self, welcome: Welcome) -> None: ...
    def on_message(self, message: FromManager) -> None: ...
    def on_lost(self) -> None: ...


@dataclass(frozen=True)
class ControlDoors:
    """Where managers are, and who both sides are. Files are read anew for each connection."""

    addresses: Callable[[], tuple[tuple[str, int], ...]]
    ca_file: Path
    pem_file: Path


@dataclass
class LinkState:
    """For people: whether it is connected, where, since when, and what was wrong last."""

    is_connected: bool = False
    address: str | None = None
    failure: HoldfastError | None = None
    connections: int = 0
    failures: int = 0


class ManagerLink:
    """Run `run` as a task; `send` at any time from the same loop."""

    def __init__(self, doors: ControlDoors, ends: Ends, clock: Clock, random: Random) -> None:
        self._doors = doors
        self._ends = ends
        self._clock = clock
        self._backoff = Backoff(random)
        self._queue: asyncio.Queue[str] = asyncio.Queue(_QUEUE_MAX)
        self._next = 0
        self._again = asyncio.Event()
        self.state = LinkState()

    def send(self, message: FromHost) -> bool:
        """Send it on the connection that there is; False where there is none, or one that stalls.

        Nothing waits for the next connection here: who wants that says it again. LimitExceeded.
        """
        text = control.encode(message)
        if not self.state.is_connected:
            return False
        try:
            self._queue.put_nowait(text)
        except asyncio.QueueFull:
            return False
        return True

    def hurry(self) -> None:
        """Do not wait any longer before the next try."""
        self._again.set()

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            began = self._clock.monotonic()
            try:
                await self._session()
            except HoldfastError as error:
                self.state.failure = error
                self.state.failures += 1
                _log.warning("the manager cannot be reached: %s", error)
            finally:
                self.state.is_connected = False
                self._ends.on_lost()
            if self._clock.monotonic() - began > _HEALTHY_SECONDS:
                self._backoff.reset()
            self._again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next()):
                    await self._again.wait()

    async def _session(self) -> None:
        addresses = self._doors.addresses()
        if not addresses:
            raise ManagerLost(
                "No control door is known.",
                hint="`holdfast-agent enrol` learns them; host.toml may name some in `control`.",
            )
        address = addresses[self._next % len(addresses)]
        try:
            connection = await self._connect(address)
        except HoldfastError:
            self._next += 1
            raise
        try:
            await self._converse(connection, f"{address[0]}:{address[1]}")
        except ConnectionClosed as error:
            raise _closed(f"{address[0]}:{address[1]}", error) from None
        except BaseException:
            connection.transport.abort()
            raise
        finally:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()

    async def _connect(self, address: tuple[str, int]) -> ClientConnection:
        shown = f"{address[0]}:{address[1]}"
        context = _context(self._doors)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                raw = await open_tcp(address)
                try:
                    return await connect(
                        f"wss://{_in_url(address[0])}:{address[1]}{control.PATH}",
                        sock=raw,
                        ssl=context,
                        server_hostname=address[0],
                        subprotocols=[Subprotocol(control.SUBPROTOCOL)],
                        compression=None,
                        proxy=None,
                        max_size=CONTROL_MESSAGE_BYTES_MAX,
                        ping_interval=_PING_SECONDS,
                        ping_timeout=_PING_SECONDS,
                        close_timeout=_CLOSE_SECONDS,
                        open_timeout=None,
                    )
                except BaseException:
                    raw.close()
                    raise
        except TimeoutError:
            raise ManagerLost(f"{shown} does not answer.", hint=_REACH, retryable=True) from None
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(
                f"{shown} showed a certificate that is not believed: {error.verify_message}.",
                hint="Something between may open TLS: `holdfast-agent doctor` tells.",
            ) from None
        except (OSError, InvalidHandshake, InvalidURI, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ManagerLost(f"{shown}: {reason}.", hint=_REACH, retryable=True) from None

    async def _converse(self, connection: ClientConnection, shown: str) -> None:
        if connection.subprotocol != control.SUBPROTOCOL:
            raise ManagerLost(f"{shown} does not speak {control.SUBPROTOCOL}.", hint=_REACH)
        await connection.send(control.encode(self._ends.hello()))
        try:
            async with asyncio.timeout(_WELCOME_SECONDS):
                first = control.decode_from_manager(await connection.recv())
        except TimeoutError:
            raise ManagerLost(f"{shown} sent no welcome.", retryable=True) from None
        if not isinstance(first, Welcome):
            raise WireError(f"{shown} began with {type(first).__name__} instead of a welcome.")
        while not self._queue.empty():
            self._queue.get_nowait()
        self.state.is_connected, self.state.address = True, shown
        self.state.failure = None
        self.state.connections += 1
        _log.info("connected to the manager at %s, epoch %d", shown, first.epoch)
        self._ends.on_welcome(first)
        sending = asyncio.create_task(self._send_all(connection))
        try:
            while True:
                message = control.decode_from_manager(await connection.recv())
                if message is not None:
                    self._ends.on_message(message)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send_all(self, connection: ClientConnection) -> None:
        # The end of the connection is noticed by who reads.
        with contextlib.suppress(ConnectionClosed):
            while True:
                await connection.send(await self._queue.get())


#: In TLS 1.3 a server that refuses a client's certificate does so after the handshake.
_REACH = "Check that the network lets this host out to it: `holdfast-agent doctor` tells."


def _closed(shown: str, error: ConnectionClosed) -> HoldfastError:
    said = error.rcvd.reason if error.rcvd is not None else ""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
        return CertificateRefused(
            f"{shown} refused this host's certificate.",
            hint="It may have been revoked: see `holdfast hosts`, or enrol this host anew.",
        )
    text = (
        f"{shown} ended the connection: {control.plain(said, 200)}."
        if said
        else (f"{shown} ended the connection.")
    )
    return ManagerLost(text, retryable=True)


def _context(doors: ControlDoors) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(doors.ca_file)
        context.load_cert_chain(doors.pem_file)
    except (OSError, ssl.SSLError) as error:
        raise CertificateRefused(
            f"This host's own certificate cannot be used: {error.strerror or error}.",
            hint="Restore the identity's folder, or enrol this host anew.",
        ) from None
    return context


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
