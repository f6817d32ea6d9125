"""A manager at the control door for one data node: what a test tells it, and what the node says."""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from app.certificates.authority import key_of_request, pem_of, sign_door, sign_node, sign_server
from host_agent.wire import control
from host_agent.wire.names import datanode_san, server_name
from host_agent.wire.nodecontrol import (
    CertificateRequest,
    FromManager,
    FromNode,
    NodeCertificate,
    NodeFacts,
    NodeHello,
    NodeWelcome,
    Records,
    TenantRecord,
    decode_from_node,
)
from host_agent.wire.serving import ServingRecord, encode_record
from tests.servers.datanode import Deployment


class Manager:
    """Signs what it is asked for; records are told by `tell`."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.hellos: list[NodeHello] = []
        self.requests: list[CertificateRequest] = []
        self.facts: queue.Queue[NodeFacts] = queue.Queue()
        self._line: ServerConnection | None = None
        self._changed = threading.Condition()
        self.address = ""

    def tell(self, *records: ServingRecord, only: list[str] | None = None) -> None:
        """Push these records; `only`: the node serves these tenants and no others."""
        self.wait()
        told = [
            TenantRecord(one.tenant, one.version, msgspec.Raw(encode_record(one)))
            for one in records
        ]
        self._say(Records(told, only))

    def drop(self) -> None:
        """End the connection; the node comes again."""
        assert self._line is not None
        self._line.close()

    def wait(self, times: int = 1) -> NodeHello:
        """Until the node has connected so often; what it then said first."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self.hellos) >= times, 60)
        assert enough, "the node did not connect"
        return self.hellos[times - 1]

    def _say(self, message: FromManager) -> None:
        assert self._line is not None
        self._line.send(control.encode(message))

    def handle(self, line: ServerConnection) -> None:
        """One connection."""
        self._line = line
        with contextlib.suppress(ConnectionClosed):
            for text in line:
                message = decode_from_node(text)
                assert message is not None
                self._heard(message)

    def _heard(self, message: FromNode) -> None:
        if isinstance(message, NodeHello):
            self._say(NodeWelcome(0.2, time.time_ns()))
            with self._changed:
                self.hellos.append(message)
                self._changed.notify_all()
        elif isinstance(message, NodeFacts):
            self.facts.put(message)
        else:
            self.requests.append(message)
            self._say(NodeCertificate(message.request, self._signed(message)))

    def _signed(self, request: CertificateRequest) -> str:
        key, now = key_of_request(request.key_request), datetime.now(UTC)
        nodes = self._deployment.nodes
        if request.tenant is None:
            leaf = sign_node(nodes, key, datanode_san("node_x"), now)
        else:
            assert request.service is not None
            leaf = sign_door(nodes, key, server_name(request.tenant, request.service), now)
        return pem_of(leaf) + nodes.certificate_pem


@contextlib.contextmanager
def running_manager(deployment: Deployment, folder: Path) -> Iterator[Manager]:
    """Serve on a free port of this machine, mutual TLS as the real door has it."""
    manager = Manager(deployment)
    address = str(ipaddress.ip_address("127.0.0.1"))
    own = sign_server(deployment.root, [address], datetime.now(UTC))
    file = folder / "manager.pem"
    file.write_bytes(own.certificate_pem.encode() + own.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.load_verify_locations(deployment.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(
        manager.handle,
        address,
        0,
        ssl=context,
        subprotocols=[control.SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
    )
    manager.address = f"{address}:{server.socket.getsockname()[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield manager
    finally:
        server.shutdown()
        if manager._line is not None:
            manager._line.close()
        thread.join(30)
