"""The process of one tenant on this host: its identity, its connection, its streams and keys."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable

from host_agent.control.managed import STATE, ManagedHost, ManagedSettings
from host_agent.control.process import keep_memory
from host_agent.control.server import CommandServer
from host_agent.control.state_dir import StateDir

_log = logging.getLogger("holdfast.agent")

Prepare = Callable[[ManagedHost], None]
"""Adds to the host before it starts."""


def run_host(settings: ManagedSettings, prepare: Prepare = lambda _host: None) -> None:
    """Serve one tenant until SIGTERM or SIGINT; HoldfastError if it cannot start."""

    async def serve(host: ManagedHost, stopping: asyncio.Event) -> None:
        prepare(host)
        server = CommandServer(host.agent.config.socket, host.command)
        await server.start()
        host.start()
        config = host.agent.config
        _log.info("the agent of %s/%s runs", config.tenant, config.host)
        # What was loaded so far stays for ever: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        await stopping.wait()
        _log.info("the agent stops")
        await server.stop()
        await host.stop()

    _in_state(settings, serve)


def wipe_host(settings: ManagedSettings) -> bool:
    """Detach all that this tenant has here and forget its keys. False: a machine still uses a disk.

    HoldfastError if it cannot even begin.
    """
    is_done = False

    async def wipe(host: ManagedHost, stopping: asyncio.Event) -> None:
        nonlocal is_done
        wiping = asyncio.create_task(host.wipe())
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({wiping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        is_done = wiping.done() and wiping.result()
        for task in (wiping, stopped):
            task.cancel()
        await asyncio.gather(wiping, stopped, return_exceptions=True)
        await host.stop()

    _in_state(settings, wipe)
    return is_done


def _in_state(
    settings: ManagedSettings, work: Callable[[ManagedHost, asyncio.Event], Awaitable[None]]
) -> None:
    keep_memory()
    state = StateDir(settings.directory / STATE)
    state.lock()
    try:
        asyncio.run(_until_told(settings, state, work))
    finally:
        state.unlock()


async def _until_told(
    settings: ManagedSettings,
    state: StateDir,
    work: Callable[[ManagedHost, asyncio.Event], Awaitable[None]],
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await work(ManagedHost(settings, state), stopping)
