"""`holdfast-agent run`: the process around the agent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import signal
from pathlib import Path

from host_agent.control.agent import Agent
from host_agent.control.config import load_config
from host_agent.control.server import CommandServer
from host_agent.control.state_dir import StateDir
from host_agent.wire.limits import MIB

#: M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc, bytes.
_MALLOC = ((-8, 1), (-3, 16 * MIB), (-1, 32 * MIB))

_log = logging.getLogger("holdfast.agent")


def run_agent(config_file: Path) -> int:
    """Run until SIGTERM or SIGINT; HoldfastError if it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    keep_memory()
    config = load_config(config_file)
    state = StateDir(config.state_dir)
    state.lock()
    try:
        agent = Agent(config, state)
        asyncio.run(_serve(agent))
    finally:
        state.unlock()
    return 0


def keep_memory() -> None:
    """Let malloc keep the memory of frames that come and go, in one arena for all threads.

    Else each frame's four million bytes are given to the kernel and faulted in again, which costs
    a tenth of the agent's time, and each thread keeps a heap of its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC:
            mallopt(parameter, value)


async def _serve(agent: Agent) -> None:
    server = CommandServer(agent.config.socket, agent.command)
    await server.start()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    agent.start()
    _log.info("the agent of %s/%s runs", agent.config.tenant, agent.config.host)
    # What was loaded so far stays for ever: no collection needs to look at it again.
    gc.collect()
    gc.freeze()
    await stopping.wait()
    _log.info("the agent stops")
    await server.stop()
    await agent.stop()
