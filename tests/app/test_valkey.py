"""The private Valkey: reached by its socket alone, and it keeps what it was told through a kill."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from redis.asyncio import Redis

from app.embedded.supervisor import Supervisor
from app.embedded.valkey import ValkeyMissing, broker_url, valkey_program

pytestmark = pytest.mark.anyio


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vk-") as made:
        yield Path(made) / "valkey"


async def test_it_answers_on_its_socket_and_keeps_what_it_has(home: Path) -> None:
    supervisor = Supervisor(home.parent / "logs", lambda _: None)
    await supervisor.start([valkey_program(home)])
    try:
        path = broker_url(home).removeprefix("redis+socket://")
        async with Redis(unix_socket_path=path) as client:
            assert await client.set("a", "1")
            child = supervisor.children[0]
            before = child.pid
            assert before is not None
            await anyio.sleep(1.2)  # the append-only file is synced each second
            os.kill(before, signal.SIGKILL)
            with anyio.fail_after(30):
                while child.pid in (None, before) or not await child.program.is_ready():
                    await anyio.sleep(0.02)
        async with Redis(unix_socket_path=path) as client:
            assert await client.get("a") == b"1"
    finally:
        await supervisor.stop()


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValkeyMissing, match="too long"):
        valkey_program(tmp_path / ("long" * 30))
