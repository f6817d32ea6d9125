"""The API as a process of its own: `holdfast api`."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import Field

from app.api import make_app
from app.certificates.authority import Authority, load_authority
from app.database.sessions import Database
from app.database.settings import DatabaseSettings
from app.events.hub import EventHub
from app.http.unit import Tools
from app.keys.client import SocketKeys
from app.keys.port import NoKeys
from app.kit.clock import SystemClock
from app.kit.sealing import Sealer
from app.kit.settings import Address, BadSettings, host_and_port

_KEEP_ALIVE_SECONDS = 30
_STOP_SECONDS_MAX = 10


class ApiSettings(DatabaseSettings):
    """What the API is told."""

    api_listen: Address = "127.0.0.1:7443"
    api_certificate_file: Path = Field(
        description="PEM: the server's certificate, what it is signed by, and its key."
    )
    root_certificate_file: Path
    root_key_file: Path = Field(description="Signs each new tenant's intermediate.")
    keys_socket: Path | None = Field(default=None, description="The key service's Unix socket.")
    control_doors: tuple[Address, ...] = Field(
        default=(), description="Where hosts find their managers, a JSON list, the best first."
    )

    def root(self) -> Authority:
        """The deployment's root; BadSettings."""
        files = (self.root_certificate_file, self.root_key_file)
        try:
            certificate, key = (file.read_bytes() for file in files)
            return load_authority(certificate, key)
        except (OSError, ValueError) as error:
            raise BadSettings(f"The root in {files[0]} and {files[1]}: {error}.") from None


def run_api(settings: ApiSettings) -> int:
    """Serve until a signal. Returns the exit code; BadSettings."""
    tools = Tools(
        Database(settings.database),
        Sealer(settings.secret),
        SystemClock(),
        settings.root(),
        NoKeys() if settings.keys_socket is None else SocketKeys(settings.keys_socket),
        settings.control_doors,
    )
    asyncio.run(_serve(settings, tools))
    return 0


class _Server(uvicorn.Server):
    """Ends event streams at once when it is told to stop; their readers go on elsewhere."""

    def __init__(self, config: uvicorn.Config, hub: EventHub) -> None:
        super().__init__(config)
        self._hub = hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hub.close()
        super().handle_exit(sig, frame)


async def _serve(settings: ApiSettings, tools: Tools) -> None:
    app = make_app(tools)
    try:
        await _Server(server_config(settings, app), app.state.hub).serve()
    finally:
        await tools.database.close()


def server_config(settings: ApiSettings, app: FastAPI) -> uvicorn.Config:
    """How an application is served; BadSettings."""
    host, port = host_and_port(settings.api_listen)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=str(settings.api_certificate_file),
        ssl_keyfile=str(settings.api_certificate_file),
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS_MAX,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise BadSettings(
            f"The API's certificate {settings.api_certificate_file}: {error}."
        ) from None
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config
