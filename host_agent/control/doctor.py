"""`holdfast-agent doctor`: everything between this host and its service, looked at once.

It changes nothing, needs no running agent and sends nothing but TLS handshakes and one public GET.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import ssl
import stat
import time
from collections.abc import Awaitable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from host_agent import __version__
from host_agent.control import enrol
from host_agent.control.assignment import address_of, addresses_of
from host_agent.control.host_settings import HostSettings, load_settings
from host_agent.control.managed import STATE, load_assignment
from host_agent.control.taps import TapHost
from host_agent.stream.tunnel import open_tcp, proxy_for
from host_agent.wire.errors import HoldfastError
from host_agent.wire.limits import MIB

OK, WARNING, FAILED = "ok", "warning", "failed"
_SECONDS = 10.0
#: A clock that is further off makes recovery points wrong, and one by hours breaks certificates.
_SKEW_SECONDS = 2.0
_SKEW_SECONDS_MAX = 300.0
_FREE_BYTES_MIN = 64 * MIB
_KERNEL_MIN = (5, 10)


@dataclass(frozen=True)
class Finding:
    """One look: at what, how it is, in a sentence, and what to do."""

    what: str
    state: str
    said: str
    hint: str = ""


@dataclass(frozen=True)
class _Door:
    """Somewhere that this host has to reach. `name` is what its certificate must carry."""

    what: str
    host: str
    port: int
    name: str


def examine(directory: Path) -> list[Finding]:
    """All findings, in the order in which one depends on another."""
    return asyncio.run(_examine(directory.absolute()))


async def _examine(directory: Path) -> list[Finding]:
    found = [_versions(), _kernel()]
    try:
        identity = enrol.load_identity(directory)
        settings = load_settings(directory)
        doors = _doors(identity, settings)
    except HoldfastError as error:
        return [*found, Finding("identity", FAILED, error.message, error.hint)]
    found += [*_permissions(directory), _space(directory), _certificate(directory)]
    found.append(await _tap(settings))
    found += _proxies(doors)
    looks: list[Awaitable[list[Finding]]] = [_look(door, directory) for door in doors]
    for findings in await asyncio.gather(*looks):
        found += findings
    found.append(await _clock(identity))
    return found


# --- this machine


def _versions() -> Finding:
    parts = (f"holdfast-agent {__version__}", f"Python {platform.python_version()}")
    return Finding("versions", OK, ", ".join((*parts, ssl.OPENSSL_VERSION)))


def _kernel() -> Finding:
    release = platform.release()
    numbers = [int(word) for word in release.split("-")[0].split(".")[:2] if word.isdigit()]
    if tuple(numbers) < _KERNEL_MIN:
        return Finding(
            "kernel", WARNING, f"Linux {release}.", "The tap is tried with 5.10 and newer."
        )
    return Finding("kernel", OK, f"Linux {release}, {platform.machine()}.")


def _permissions(directory: Path) -> Iterable[Finding]:
    for path, allowed in ((directory, 0o700), (directory / enrol.PEM, 0o600)):
        try:
            status = path.stat()
        except OSError as error:
            yield Finding("permissions", FAILED, f"{path}: {error.strerror}.", "Run it as root.")
            continue
        mode = stat.S_IMODE(status.st_mode)
        if mode & ~allowed:
            said = f"{path} has mode {mode:o}: others may read this host's key."
            yield Finding("permissions", FAILED, said, f"chmod {allowed:o} {path}")
        elif not os.access(path, os.R_OK | os.W_OK):
            said = f"{path} cannot be read and written by this user."
            yield Finding("permissions", FAILED, said, "Run it as the agent's user.")
        else:
            yield Finding("permissions", OK, f"{path} is its owner's alone.")


def _space(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    said = f"{free // MIB} MiB free at {directory}."
    if free < _FREE_BYTES_MIN:
        return Finding("space", FAILED, said, "Commands and keys cannot be kept: make room.")
    return Finding("space", OK, said)


def _certificate(directory: Path) -> Finding:
    try:
        leaf = x509.load_pem_x509_certificates((directory / enrol.PEM).read_bytes())[0]
    except (OSError, ValueError) as error:
        return Finding("certificate", FAILED, f"It cannot be read: {error}.", "Enrol anew.")
    left = leaf.not_valid_after_utc - datetime.now(UTC)
    until = leaf.not_valid_after_utc.isoformat(timespec="seconds")
    if left < -timedelta(days=7):
        return Finding("certificate", FAILED, f"It ended at {until}.", "Enrol this host anew.")
    if left < timedelta(0):
        said = f"It ended at {until}; replication goes on for 7 days, renewal is still possible."
        return Finding("certificate", WARNING, said, "See what keeps it from being renewed below.")
    return Finding("certificate", OK, f"Valid until {until}.")


async def _tap(settings: HostSettings) -> Finding:
    host = TapHost(settings.tap)
    try:
        async with host.channel():
            hello = host.hello
    except HoldfastError as error:
        return Finding("tap", FAILED, error.message, error.hint)
    said = f"holdfast-tap {hello.get('build')} runs, engine {hello.get('engine')}."
    if hello.get("engine") != "io_uring":
        return Finding("tap", WARNING, said, "Without io_uring writes cost more: see the kernel.")
    return Finding("tap", OK, said)


# --- the way to the service


def _doors(identity: enrol.Identity, settings: HostSettings) -> list[_Door]:
    place = urlsplit(identity.api)
    doors = [_Door("api", place.hostname or "", place.port or 443, place.hostname or "")]
    for text in settings.control or identity.control_doors:
        host, port = address_of(text)
        doors.append(_Door("control", host, port, host))
    assignment = load_assignment(identity.directory / STATE / "assignment.json")
    if assignment is not None:
        for host, port in addresses_of(assignment):
            doors.append(_Door("data", host, port, assignment.server_name))
    return doors


def _proxies(doors: list[_Door]) -> Iterable[Finding]:
    for door in doors:
        try:
            proxy = proxy_for(door.host)
        except OSError as error:
            yield Finding("proxy", FAILED, f"{error}.", "Correct HTTPS_PROXY.")
            return
        if proxy is not None:
            yield Finding("proxy", OK, f"{door.host} is reached through {proxy.shown}.")


async def _look(door: _Door, directory: Path) -> list[Finding]:
    """Name, route and TLS of one door; what depends on a failure is left out."""
    what, shown = door.what, f"{door.host}:{door.port}"
    found: list[Finding] = []
    if proxy_for(door.host) is None:
        found.append(await _name(door))
        if found[-1].state == FAILED:
            return found
    began = time.monotonic()
    try:
        async with asyncio.timeout(_SECONDS):
            raw = await open_tcp((door.host, door.port))
            raw.close()
    except (OSError, TimeoutError) as error:
        said = f"{shown} cannot be reached: {_reason(error)}."
        hint = f"Let this host out to TCP port {door.port}, or name a proxy in HTTPS_PROXY."
        return [*found, Finding(f"{what} route", FAILED, said, hint)]
    milliseconds = (time.monotonic() - began) * 1000
    found.append(Finding(f"{what} route", OK, f"{shown} answers in {milliseconds:.0f} ms."))
    found.append(await _tls(door, directory))
    return found


async def _name(door: _Door) -> Finding:
    try:
        async with asyncio.timeout(_SECONDS):
            told = await asyncio.get_running_loop().getaddrinfo(door.host, door.port)
    except (OSError, TimeoutError) as error:
        said = f"{door.host} has no address: {_reason(error)}."
        return Finding(f"{door.what} name", FAILED, said, "Check /etc/resolv.conf.")
    addresses = sorted({str(one[4][0]) for one in told})
    return Finding(f"{door.what} name", OK, f"{door.host} is {', '.join(addresses)}.")


async def _tls(door: _Door, directory: Path) -> Finding:
    """Whether the one who answers is the service, or somebody who opens TLS on the way."""
    what = f"{door.what} TLS"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(directory / enrol.ROOT)
        context.load_cert_chain(directory / enrol.PEM)
        await _handshake(door, context)
    except ssl.SSLCertVerificationError as error:
        issuer = await _issuer(door)
        said = f"{door.host} shows a certificate of {issuer}: {error.verify_message}."
        hint = "A proxy or firewall opens TLS: have it pass this name through, or correct the name."
        return Finding(what, FAILED, said, hint)
    except (OSError, TimeoutError) as error:
        hint = "Something between speaks no TLS 1.3, or the service refuses this host."
        return Finding(what, FAILED, f"{door.host}: {_reason(error)}.", hint)
    return Finding(what, OK, f"{door.host} is the service: its root is the one of the join token.")


async def _handshake(door: _Door, context: ssl.SSLContext) -> bytes:
    """The certificate that is shown, DER; OSError."""
    async with asyncio.timeout(_SECONDS):
        raw = await open_tcp((door.host, door.port))
        try:
            _, writer = await asyncio.open_connection(
                sock=raw, ssl=context, server_hostname=door.name
            )
        except BaseException:
            raw.close()
            raise
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    writer.transport.abort()
    return shown


async def _issuer(door: _Door) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        shown = x509.load_der_x509_certificate(await _handshake(door, context))
    except (OSError, TimeoutError, ValueError):
        return "somebody"
    return shown.issuer.rfc4514_string() or "somebody"


async def _clock(identity: enrol.Identity) -> Finding:
    began = time.time()
    try:
        told = await asyncio.to_thread(enrol.time_of_service, identity)
    except HoldfastError as error:
        return Finding("clock", WARNING, f"Nobody to compare with: {error.message}")
    try:
        moment = datetime.fromisoformat(told).timestamp()
    except ValueError:
        return Finding("clock", WARNING, "The service does not say what time it is.")
    # Some time passed while its word came.
    skew = max(0.0, began - moment, moment - time.time())
    said = f"This host's clock is {skew:.0f} s from the service's."
    if skew > _SKEW_SECONDS_MAX:
        return Finding("clock", FAILED, said, "Set it: certificates are judged by it.")
    if skew > _SKEW_SECONDS:
        return Finding("clock", WARNING, said, "Have it kept by NTP: recovery points depend on it.")
    return Finding("clock", OK, "This host's clock is the service's.")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- for people


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """For `--json`."""
    return {"healthy": is_healthy(findings), "findings": [asdict(one) for one in findings]}


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing failed."""
    return all(one.state != FAILED for one in findings)


def as_text(findings: list[Finding]) -> str:
    """On one page."""
    width = max(len(one.what) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"{one.state.upper():8}{one.what:{width + 2}}{one.said}")
        if one.hint and one.state != OK:
            lines.append(f"{'':{width + 10}}{one.hint}")
    return "\n".join(lines)


def run_doctor(directory: Path, *, as_one_object: bool) -> int:
    """Print the findings; 1 if something failed."""
    findings = examine(directory)
    print(json.dumps(as_json(findings)) if as_one_object else as_text(findings))
    return 0 if is_healthy(findings) else 1
