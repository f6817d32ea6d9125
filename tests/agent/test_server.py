"""The agent's own socket, wherever its folder lies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from host_agent.control.client import ask
from host_agent.control.errors import AgentNotRunning, AgentRunning
from host_agent.control.server import CommandServer
from host_agent.control.tap_client import Fields
from tests.stream.harness import in_loop


async def _echo(request: Fields) -> Fields:
    return {"said": request["do"]}


@in_loop
async def test_a_folder_may_lie_deeper_than_an_address_is_long(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / "state" / "agent.sock"
    server = CommandServer(path, _echo)
    await server.start()
    try:
        assert len(str(path)) > 107
        assert path.stat().st_mode & 0o777 == 0o600
        answer = await asyncio.to_thread(ask, path, {"do": "status"})
        assert answer == {"said": "status"}
        with pytest.raises(AgentRunning):
            await CommandServer(path, _echo).start()
    finally:
        await server.stop()
    with pytest.raises(AgentNotRunning):
        ask(path, {"do": "status"})
    with pytest.raises(AgentNotRunning):
        ask(tmp_path / "none" / "agent.sock", {"do": "status"})
