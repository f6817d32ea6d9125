"""A real data node whose control plane is away: what it needs is put into its folder, sealed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.certificates.authority import (
    Authority,
    key_of_request,
    key_pem_of,
    make_intermediate,
    make_node_authority,
    make_root,
    pem_of,
    sign_door,
    sign_host,
    sign_node,
)
from app.kit.ids import Kind, new_uuid, show
from host_agent.wire.message import ALPN
from host_agent.wire.names import INGEST, RESTORE, agent_san, datanode_san, server_name
from host_agent.wire.serving import HostRight, ServingRecord, StoreAccess
from workers.cli.datanode import read_status
from workers.supervisor.identity import ROOT, keep_identity, make_key
from workers.supervisor.record import Kept, KeptIdentity, RecordStore, replace_file

_ROOT = Path(__file__).parents[2]
_START_SECONDS_MAX = 60
_STOP_SECONDS_MAX = 30


@dataclass
class Tenant:
    """A tenant with its authority, as the control plane would have it."""

    id: str
    authority: Authority
    store: str

    def agent(self, directory: Path, host: str, uri: str | None = None) -> tuple[Path, Path]:
        """Certificate and key of a host of this tenant."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = uri or agent_san(self.id, host)
        certificate = sign_host(self.authority, key.public_key(), uri, datetime.now(UTC))
        name = f"{self.id}-{host}-{abs(hash(uri)) % 10**6}"
        files = directory / f"{name}.crt", directory / f"{name}.key"
        files[0].write_text(pem_of(certificate) + self.authority.certificate_pem)
        files[1].write_bytes(key_pem_of(key))
        return files


@dataclass
class Deployment:
    """The root and what it has signed; one folder for files."""

    directory: Path
    root: Authority = field(default_factory=lambda: make_root(datetime.now(UTC)))

    def __post_init__(self) -> None:
        self.nodes = make_node_authority(self.root, datetime.now(UTC))
        self.ca = self.directory / "root.pem"
        self.ca.write_text(self.root.certificate_pem)

    def tenant(self, store: str | None = None) -> Tenant:
        """A new tenant."""
        now = datetime.now(UTC)
        tenant = show(Kind.TENANT, new_uuid(now))
        store = store or f"file://{self.directory}/journal"
        return Tenant(tenant, make_intermediate(self.root, tenant, now), store)

    def record(self, tenant: Tenant, version: int = 1, **changes: Any) -> ServingRecord:
        """What a data node is told of the tenant: by default `host1` may write all groups."""
        fields: dict[str, Any] = {
            "store": StoreAccess(tenant.store, "folder"),
            "hosts": [HostRight("host1", ["*"])],
        }
        return ServingRecord(
            tenant=tenant.id,
            version=version,
            intermediate=tenant.authority.certificate_pem,
            **(fields | changes),
        )

    def door(self, tenant: Tenant, service: str = INGEST) -> KeptIdentity:
        """A certificate of the tenant's service at the data node."""
        key = make_key()
        name = server_name(tenant.id, service)
        leaf = sign_door(self.nodes, key_of_request(key.request), name, datetime.now(UTC))
        chain = pem_of(leaf) + self.nodes.certificate_pem
        return KeptIdentity(chain, key.private, time.time() + 1e7)

    def client(
        self, certificate: tuple[Path, Path] | None, *, tickets: bool = False
    ) -> ssl.SSLContext:
        """A host's TLS context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([ALPN])
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context


class DataNode:
    """A data node's folder, and the process that runs on it."""

    def __init__(self, deployment: Deployment, control: str = "127.0.0.1:9") -> None:
        self.deployment = deployment
        # Socket names have at most 107 bytes, wherever the tests' folder is.
        self._short = tempfile.TemporaryDirectory(prefix="hf-node-")
        self.directory = Path(self._short.name)
        self.control = control
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ("127.0.0.1", 0)
        self.records = RecordStore.open(self.directory)
        self._join()

    def _join(self) -> None:
        key = make_key()
        uri = datanode_san("node_01hq3v5k8m9n2p4r6s7t8w9x0z")
        leaf = sign_node(self.deployment.nodes, key_of_request(key.request), uri, datetime.now(UTC))
        chain = pem_of(leaf) + self.deployment.nodes.certificate_pem
        keep_identity(self.directory, chain, key)
        replace_file(self.directory / ROOT, self.deployment.root.certificate_pem.encode())

    def keep(self, tenant: Tenant, record: ServingRecord | None = None) -> None:
        """Put a tenant into the folder of a node that does not run."""
        record = record or self.deployment.record(tenant)
        doors = {service: self.deployment.door(tenant, service) for service in (INGEST, RESTORE)}
        self.records.save(Kept(record, doors))

    def start(
        self, environment: Mapping[str, str] | None = None, words: tuple[str, ...] = ()
    ) -> None:
        """Start it on the port that it had, and wait until it listens."""
        log_path = self.directory / "node.log"
        began = log_path.stat().st_size if log_path.exists() else 0
        told = {
            "HOLDFAST_DATANODE_DIRECTORY": str(self.directory),
            "HOLDFAST_DATANODE_LISTEN": f"127.0.0.1:{self.address[1]}",
            "HOLDFAST_CONTROL_DOORS": self.control,
        }
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, sys.executable, "-m", "workers.cli.main", "datanode"],
                stdout=log,
                stderr=log,
                env={**os.environ, **told, **(environment or {})},
                cwd=_ROOT,
            )
        pattern = re.compile(r"event=listening address=([0-9.]+):(\d+)")
        found = self.wait_for(
            lambda: pattern.search(self.log[began:]), "it did not listen", _START_SECONDS_MAX
        )
        self.address = found[1], int(found[2])

    @property
    def log(self) -> str:
        """All that it and its processes said."""
        return (self.directory / "node.log").read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return read_status(self.directory)

    def wait_for(self, look: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        """Look until something is there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            assert self.process is not None
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"{what}:\n{self.log[-8000:]}")

    def pid_of(self, what: str, tenant: str | None = None) -> int:
        """The number of the `router`, the `zygote` or a tenant's `ingest` that is ready now."""

        def look() -> int | None:
            status = self.status()
            if tenant is None:
                found = [status[what]]
            else:
                services = status["services"]
                found = [s for s in services if (s["service"], s["tenant"]) == (what, tenant)]
            ready = [int(one["pid"]) for one in found if one["state"] == "ready"]
            return ready[0] if ready else None

        pid: int = self.wait_for(look, f"no {what} is ready")
        return pid

    def stop(self) -> int:
        """An orderly end; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS_MAX)
        finally:
            self.kill()

    def kill(self) -> None:
        """As a power switch would, for the supervisor: its children notice."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(10)

    def clean(self) -> None:
        """End it and remove its folder."""
        self.kill()
        self._short.cleanup()


@contextlib.contextmanager
def running_node(deployment: Deployment, *tenants: Tenant) -> Iterator[DataNode]:
    """A data node that serves these tenants; ended at the end, however the test went."""
    node = DataNode(deployment)
    try:
        for tenant in tenants:
            node.keep(tenant)
        node.start()
        yield node
        assert "event=defect" not in node.log, node.log
        assert "Traceback" not in node.log, node.log
    finally:
        node.clean()


def leaf_of(file: Path) -> x509.Certificate:
    """The first certificate of a PEM file."""
    return x509.load_pem_x509_certificates(file.read_bytes())[0]


def key_bytes(file: Path) -> bytes:
    """A private key's own number, as a process that holds it has it in memory."""
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32)
