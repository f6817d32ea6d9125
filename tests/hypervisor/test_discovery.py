"""Machines and disks as real programs tell them: a storage daemon, QEMU, libvirt's test driver."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_agent.hypervisor import discovery
from host_agent.hypervisor.errors import LibvirtFailed, QmpGone
from host_agent.hypervisor.qmp import Monitor
from infra.demo.processes import Processes, program, wait_until
from tests.hypervisor.machines import MIB, Daemon

UUID = "6b1c6a5c-9d1c-4b1c-8f3a-0c1d2e3f4a5b"
DOMAIN = """<domain type='test'><name>shop</name><uuid>{uuid}</uuid><memory>1024</memory>
<os><type>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='/images/shop.qcow2'/><target dev='vda' bus='virtio'/></disk>
<disk type='block' device='disk'><driver name='qemu' type='raw'/>
<source dev='/dev/vg/data'/><target dev='vdb' bus='virtio'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/images/boot.iso'/><target dev='sda' bus='sata'/>
</disk></devices></domain>"""


@pytest.fixture
def processes(folder: Path) -> Iterator[Processes]:
    (folder / "logs").mkdir()
    made = Processes(folder / "logs")
    yield made
    made.stop_all()


def through_qmp(path: Path) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        monitor = Monitor(path)
        try:
            return await discovery.through_qmp(monitor)
        finally:
            await monitor.close()

    return asyncio.run(main())


def make_disk(path: Path, size: int) -> Path:
    with path.open("xb") as file:
        file.truncate(size)
    return path


@pytest.mark.qemu
def test_a_machine_behind_its_qmp_socket(processes: Processes, folder: Path) -> None:
    disk, other = make_disk(folder / "a.raw", 3 * MIB), folder / "b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", other, "5M"], check=True)
    argv: list[str | Path] = [
        *(program("qemu-system-x86_64"), "-accel", "tcg", "-m", "32", "-nodefaults", "-S"),
        *("-no-user-config", "-display", "none", "-name", "shop", "-uuid", UUID),
        *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
        *("-blockdev", f"driver=file,node-name=file0,filename={disk}"),
        *("-blockdev", "driver=raw,node-name=disk0,file=file0"),
        *("-device", "virtio-blk-pci,drive=disk0,id=root"),
        *("-blockdev", f"driver=file,node-name=file1,filename={other}"),
        *("-blockdev", "driver=qcow2,node-name=disk1,file=file1"),
        *("-device", "virtio-blk-pci,drive=disk1,id=data"),
    ]
    processes.start("qemu", argv)
    wait_until("QMP is there", 20, (folder / "qmp").exists)
    found = through_qmp(folder / "qmp")
    assert (found["name"], found["uuid"], found["state"]) == ("shop", UUID, "prelaunch")
    by_node = {one["node"]: one for one in found["disks"]}
    assert by_node["disk0"]["path"] == str(disk)
    assert (by_node["disk0"]["format"], by_node["disk0"]["size"]) == ("raw", 3 * MIB)
    assert (by_node["disk1"]["format"], by_node["disk1"]["size"]) == ("qcow2", 5 * MIB)
    assert "root" in by_node["disk0"]["target"]
    assert not by_node["disk1"]["read_only"]


@pytest.mark.qemu
def test_a_storage_daemon_shows_its_nodes(processes: Processes, folder: Path) -> None:
    daemon = Daemon(processes, folder, make_disk(folder / "a.raw", MIB))
    daemon.start()
    found = through_qmp(daemon.qmp)
    assert (found["name"], found["uuid"]) == (None, None)
    assert {one["node"]: one["size"] for one in found["disks"]} == {"disk0": MIB, "file0": MIB}
    with pytest.raises(QmpGone):
        through_qmp(folder / "nothing")


def test_machines_of_libvirt(folder: Path) -> None:
    driver = folder / "node.xml"
    driver.write_text(f"<node>{DOMAIN.format(uuid=UUID)}</node>")
    (found,) = asyncio.run(discovery.through_libvirt(f"test://{driver}"))
    assert (found["name"], found["uuid"], found["state"]) == ("shop", UUID, "running")
    first, second = found["disks"]
    assert (first["target"], first["path"], first["format"]) == (
        "vda",
        "/images/shop.qcow2",
        "qcow2",
    )
    assert (second["target"], second["path"], second["read_only"]) == ("vdb", "/dev/vg/data", True)
    assert first["size"] > 0
    (default,) = asyncio.run(discovery.through_libvirt("test:///default"))
    assert default["name"] == "test"


def test_what_libvirt_cannot_do_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LibvirtFailed, match="refused list"):
        asyncio.run(discovery.through_libvirt(f"test://{folder}/nothing.xml"))
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(LibvirtFailed, match="virsh was not found"):
        asyncio.run(discovery.through_libvirt("test:///default"))
