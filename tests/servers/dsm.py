"""Data services managers over a real database, in this process or as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from app.certificates.authority import sign_process
from app.dsm.door import PROCESS_URI
from app.dsm.metrics import Metrics
from app.dsm.process import DsmProcess, DsmSettings
from tests.app.joining import enrol, make_join_token, make_key, request_of
from tests.app.service import SECRET, Caller, Service
from tests.servers.dsm_host import Door, HostFiles, SimulatedHost, client_tls

#: Product intervals made short.
SHORT: dict[str, Any] = {
    "heartbeat_seconds": 4.0,
    "lease_renew_seconds": 0.5,
    "lease_act_seconds": 3.0,
    "lease_gone_seconds": 4.0,
    "command_poll_seconds": 0.1,
    "revocation_poll_seconds": 0.3,
    "checkpoint_record_seconds": 0.3,
    "data_doors": ("data.example:443",),
}


@dataclass
class Site:
    """What managers and their hosts share: files, the service, hosts that joined."""

    folder: Path
    service: Service
    options: dict[str, Any] = field(default_factory=lambda: dict(SHORT))

    def __post_init__(self) -> None:
        now, root = self.service.tools.clock.now(), self.service.tools.root
        made = sign_process(root, PROCESS_URI, ["localhost", "127.0.0.1"], now)
        (self.folder / "root.pem").write_text(root.certificate_pem)
        (self.folder / "dsm.pem").write_bytes(made.certificate_pem.encode() + made.key_pem)
        (self.folder / "secret").write_bytes(SECRET)

    def settings(self, **options: Any) -> DsmSettings:
        """Of a process that listens on ports of its own."""
        given = {
            "database_url": self.service.url.render_as_string(hide_password=False),
            "secret_file": self.folder / "secret",
            "control_listen": "127.0.0.1:0",
            "dsm_certificate_file": self.folder / "dsm.pem",
            "root_certificate_file": self.folder / "root.pem",
            **self.options,
            **options,
        }
        return DsmSettings(**given)

    async def join(self, tenant: Caller, name: str, **token: Any) -> tuple[str, HostFiles]:
        """(id, files) of a new host."""
        _, join_token = await make_join_token(tenant, name, **token)
        return await self.enrol(join_token)

    async def enrol(self, join_token: str) -> tuple[str, HostFiles]:
        """(id, files) of whoever holds this token."""
        key, tenant = make_key(), self.service.nobody
        answer = await enrol(tenant, join_token, request_of(key))
        assert answer.status_code == 201, answer.text
        told = answer.json()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file = self.folder / f"{told['host_id']}.pem"
        file.write_bytes(told["certificate"].encode() + pem)
        return told["host_id"], HostFiles(file, self.folder / "root.pem")

    def host(self, files: HostFiles, *doors: Door) -> SimulatedHost:
        """A host that dials these doors."""
        return SimulatedHost(doors, client_tls(files))


@asynccontextmanager
async def running(host: SimulatedHost) -> AsyncIterator[SimulatedHost]:
    """While the block lasts, the host is there."""
    task = asyncio.create_task(host.run())
    try:
        yield host
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def manager(site: Site, **options: Any) -> AsyncIterator[DsmProcess]:
    """A manager's process within this one; stopped as SIGTERM would."""
    process = DsmProcess(site.settings(**options), Metrics())
    stopping = asyncio.Event()
    await process.start()
    serving = asyncio.create_task(process.serve(stopping))
    try:
        yield process
        assert not serving.done(), serving.result()
    finally:
        stopping.set()
        await asyncio.gather(serving, return_exceptions=True)
        await process.stop()


def door_of(process: DsmProcess) -> Door:
    """Where hosts reach it."""
    return "127.0.0.1", process.control_port


class ManagerProcess:
    """`holdfast dsm`, for killing and stopping."""

    def __init__(self, site: Site, **options: Any) -> None:
        settings = site.settings(**options).model_dump(mode="json", exclude_none=True)
        environment = {
            f"HOLDFAST_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in settings.items()
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli.main", "dsm"],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.door: Door = ("127.0.0.1", 0)

    async def started(self) -> None:
        """Until its door is open; AssertionError with its log where it ended."""
        assert self.process.stderr is not None
        while True:
            line = await asyncio.to_thread(self.process.stderr.readline)
            assert line, "".join(self.lines)
            self.lines.append(line)
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if told.get("event") == "started":
                    self.door = ("127.0.0.1", told["control_port"])
                    return

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """For good, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
