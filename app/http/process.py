"""The API as a process of its own: `holdfast api`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from types import FrameType
from typing import Annotated

import uvicorn
from prometheus_client import generate_latest
from pydantic import Field
from starlette.types import ASGIApp

from app.api import make_app
from app.certificates.authority import Authority, load_authority
from app.database.schema import check_schema
from app.database.sessions import Database
from app.database.settings import DatabaseSettings
from app.events.hub import EventHub
from app.http.admission import Admission, Rate
from app.http.protocol import StrictProtocol
from app.http.unit import Tools
from app.keys.client import SocketKeys
from app.keys.port import NoKeys
from app.kit.clock import SystemClock
from app.kit.health_door import HealthDoor
from app.kit.logs import begin_logging
from app.kit.problems import Problem
from app.kit.sealing import Sealer
from app.kit.settings import Address, BadSettings, host_and_port
from app.oidc.documents import Issuers
from app.outbound.policy import OutboundPolicy

_KEEP_ALIVE_SECONDS = 30
_STOP_SECONDS_MAX = 10
_BURST_SECONDS = 5


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
    api_proxies: tuple[str, ...] = Field(
        default=(),
        description="Addresses or networks whose X-Forwarded-For is believed, a JSON list.",
    )
    api_health_listen: Address | None = Field(
        default=None, description="Plain HTTP on loopback: /health, /ready and /metrics."
    )
    api_requests_per_second: float = Field(
        default=100.0, gt=0, description="Of one credential, in this process, in the long run."
    )
    api_tenant_requests_per_second: float = Field(
        default=200.0, gt=0, description="Of one tenant; at once five times as many."
    )

    api_url: Annotated[str, Field(pattern=r"^(https://[^/?#@\s]+)?$")] = Field(
        default="",
        description="https://NAME[:PORT] by which browsers reach the API. Without it nobody logs "
        "in through an issuer.",
    )
    outbound_permits_loopback: bool = Field(
        default=False,
        description="Issuers on this machine, without TLS too: for trials on one machine.",
    )

    def admission(self) -> Admission:
        """How many requests are let through."""
        credential, tenant = self.api_requests_per_second, self.api_tenant_requests_per_second
        return Admission(
            Rate(credential, credential * _BURST_SECONDS), Rate(tenant, tenant * _BURST_SECONDS)
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
    begin_logging(settings.log_level)
    tools = Tools(
        Database(settings.database),
        Sealer(settings.secret),
        SystemClock(),
        settings.root(),
        NoKeys() if settings.keys_socket is None else SocketKeys(settings.keys_socket),
        settings.control_doors,
        settings.admission(),
        settings.api_url,
        Issuers(OutboundPolicy(settings.outbound_permits_loopback)),
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


def server_config(settings: ApiSettings, app: ASGIApp) -> uvicorn.Config:
    """How the API is served: TLS 1.3 alone, strict HTTP, no stranger's word on who calls."""
    host, port = host_and_port(settings.api_listen)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=str(settings.api_certificate_file),
        ssl_keyfile=str(settings.api_certificate_file),
        http=StrictProtocol,
        ws="none",
        proxy_headers=bool(settings.api_proxies),
        forwarded_allow_ips=list(settings.api_proxies),
        log_config=None,
        access_log=False,
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


async def _serve(settings: ApiSettings, tools: Tools) -> None:
    app = make_app(tools)
    config = server_config(settings, app)
    door = HealthDoor(
        app.state.readiness.is_ready, lambda: generate_latest(app.state.figures.registry)
    )
    try:
        with contextlib.suppress(Problem):  # a database that is away comes back
            await check_schema(tools.database)
        if settings.api_health_listen is not None:
            await door.start(*host_and_port(settings.api_health_listen))
        await _Server(config, app.state.hub).serve()
    finally:
        await door.stop()
        await tools.database.close()
