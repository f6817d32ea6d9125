"""A host's machines and their disks, as QEMU and libvirt tell them."""

from __future__ import annotations

import asyncio
import shutil
import xml.etree.ElementTree as ET
from typing import Any

from host_agent.hypervisor import machine
from host_agent.hypervisor.errors import LibvirtFailed
from host_agent.hypervisor.qmp import Monitor

Fields = dict[str, Any]

_VIRSH_SECONDS = 20.0
_MACHINES_MAX = 1000


async def through_qmp(monitor: Monitor) -> Fields:
    """The machine behind one QMP socket; QmpGone."""
    who = await machine.identify(monitor)
    status = await machine.ask(monitor, "query-status") or {}
    devices = await machine.ask(monitor, "query-block") or []
    nodes = await monitor.execute("query-named-block-nodes", flat=True)
    by_name = {node.get("node-name"): node for node in nodes}
    disks = [_device(one, by_name) for one in devices if one.get("inserted")]
    if not devices:
        # A storage daemon has no devices; the tops of its graph are what could be protected.
        disks = [_top(node) for node in nodes if not str(node["node-name"]).startswith("#")]
    return {
        "source": str(monitor.path),
        "name": who.name,
        "uuid": who.uuid,
        "state": str(status.get("status", "running")),
        "qemu": monitor.version,
        "disks": disks,
    }


def _device(device: Fields, by_name: dict[str, Fields]) -> Fields:
    inserted = device["inserted"]
    name = inserted.get("node-name")
    node = by_name.get(name, inserted)
    told = _top({**(node or {}), "node-name": name})
    return {**told, "target": device.get("qdev") or device.get("device") or None}


def _top(node: Fields) -> Fields:
    image = node.get("image") or {}
    while image.get("format") in _FILTERS and image.get("backing-image"):
        image = image["backing-image"]
    file = str(node.get("file", ""))
    return {
        "node": node["node-name"],
        "target": None,
        "path": None if file.startswith("json:") else file or None,
        "format": str(node.get("drv", image.get("format", ""))),
        "size": int(image.get("virtual-size", 0)),
        "read_only": bool(node.get("ro")),
    }


#: Nodes that QEMU puts above a disk while a job works on it.
_FILTERS = ("mirror_top", "commit_top", "backup-top", "throttle", "copy-on-read")


async def through_libvirt(uri: str) -> list[Fields]:
    """All machines of one libvirt connection; LibvirtFailed."""
    names = (await _virsh(uri, "list", "--all", "--uuid")).split()
    return [await _domain(uri, name) for name in names[:_MACHINES_MAX]]


async def _domain(uri: str, uuid: str) -> Fields:
    try:
        # libvirt wrote it, and expat bounds what entities may grow to.
        tree = ET.fromstring(await _virsh(uri, "dumpxml", "--domain", uuid))  # noqa: S314
    except ET.ParseError as error:
        raise LibvirtFailed(f"virsh described machine {uuid} in no XML: {error}.") from None
    state = (await _virsh(uri, "domstate", "--domain", uuid)).strip()
    disks = [
        await _disk(uri, uuid, one)
        for one in tree.iterfind("./devices/disk")
        if one.get("device", "disk") == "disk"
    ]
    return {
        "source": uri,
        "name": tree.findtext("name"),
        "uuid": tree.findtext("uuid"),
        "state": state,
        "qemu": None,
        "disks": disks,
    }


async def _disk(uri: str, uuid: str, disk: ET.Element) -> Fields:
    source, target, driver = disk.find("source"), disk.find("target"), disk.find("driver")
    where = dict(source.attrib) if source is not None else {}
    dev = target.get("dev") if target is not None else None
    size = None
    if dev is not None and where:
        size = await _capacity(uri, uuid, dev)
    return {
        "node": where.get("index") and f"libvirt-{where['index']}-format",
        "target": dev,
        "path": where.get("file") or where.get("dev") or where.get("name"),
        "format": driver.get("type") if driver is not None else None,
        "size": size,
        "read_only": disk.find("readonly") is not None,
    }


async def _capacity(uri: str, uuid: str, target: str) -> int | None:
    """Bytes of the disk; None where libvirt cannot tell, of a machine that is off for example."""
    try:
        text = await _virsh(uri, "domblkinfo", "--domain", uuid, "--device", target)
    except LibvirtFailed:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Capacity" and value.strip().isdigit():
            return int(value)
    return None


async def _virsh(uri: str, *words: str) -> str:
    """Run virsh read-only; LibvirtFailed."""
    program = shutil.which("virsh")
    if program is None:
        raise LibvirtFailed(
            "The program virsh was not found.",
            hint="Install libvirt-clients, or name QMP sockets with --qmp.",
        )
    process = await asyncio.create_subprocess_exec(
        *(program, "--quiet", "--readonly", "--connect", uri, *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    try:
        async with asyncio.timeout(_VIRSH_SECONDS):
            said, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise LibvirtFailed(
            f"libvirt at {uri} did not answer within {_VIRSH_SECONDS:g} s.", retryable=True
        ) from None
    if process.returncode != 0:
        why = complaint.decode(errors="replace").strip().removeprefix("error: ")
        raise LibvirtFailed(
            f"libvirt at {uri} refused {words[0]}: {why}",
            hint="Check the URI and who may connect to it.",
        )
    return said.decode(errors="replace")
