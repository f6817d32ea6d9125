"""The key service as a process of its own: `holdfast keys`."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from cryptography import x509
from prometheus_client import generate_latest
from pydantic import Field

from app.keys.local import LocalKeys
from app.keys.server import KeyServer
from app.kit.clock import SystemClock
from app.kit.health_door import HealthDoor
from app.kit.logs import begin_logging
from app.kit.settings import Address, BadSettings, Settings, host_and_port


class KeysSettings(Settings):
    """What the key service is told."""

    keys_directory: Path = Field(description="Where the tenants' keys lie; mode 0700.")
    keys_socket: Path = Field(description="The Unix socket on which it answers.")
    keys_users: frozenset[int] = Field(
        default_factory=lambda: frozenset({os.geteuid()}),
        description="Numbers of the users whose processes may ask; by default its own.",
    )
    root_certificate_file: Path
    keys_health_listen: Address | None = Field(
        default=None, description="Plain HTTP on loopback: /health, /ready and /metrics."
    )

    def root(self) -> x509.Certificate:
        """The deployment's root; BadSettings."""
        try:
            return x509.load_pem_x509_certificate(self.root_certificate_file.read_bytes())
        except (OSError, ValueError) as error:
            raise BadSettings(f"The root in {self.root_certificate_file}: {error}.") from None


def run_keys(settings: KeysSettings) -> int:
    """Serve until a signal. Returns the exit code; BadSettings, KeysBusy."""
    begin_logging(settings.log_level)
    # What it holds goes into no core dump and to no debugger of the same user.
    _hide_memory()
    os.umask(0o077)
    asyncio.run(_serve(settings))
    return 0


async def _serve(settings: KeysSettings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    keys = LocalKeys(settings.keys_directory, settings.root(), SystemClock())
    server = KeyServer(keys, settings.keys_users)
    door = HealthDoor(server.is_ready, lambda: generate_latest(server.registry))
    try:
        async with server.serve(settings.keys_socket):
            if settings.keys_health_listen is not None:
                await door.start(*host_and_port(settings.keys_health_listen))
            await stopping.wait()
    finally:
        await door.stop()
        keys.close()


def _hide_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
