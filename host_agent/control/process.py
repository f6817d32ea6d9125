"""`holdfast-agent run`: the process around the agent."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from pathlib import Path

from host_agent.control.agent import Agent
from host_agent.control.config import load_config
from host_agent.control.server import CommandServer
from host_agent.control.state_dir import StateDir

_log = logging.getLogger("holdfast.agent")


def run_agent(config_file: Path) -> int:
    """Run until SIGTERM or SIGINT; HoldfastError if it cannot start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = load_config(config_file)
    state = StateDir(config.state_dir)
    state.lock()
    try:
        agent = Agent(config, state)
        asyncio.run(_serve(agent))
    finally:
        state.unlock()
    return 0


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
