"""Answers for people: short lines with units."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote, unquote, urlsplit

Fields = dict[str, Any]

_RECONNECT_SECONDS = 600


def size(count: float | None) -> str:
    """Bytes as people read them: `1.5 GiB`."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def rate(bytes_per_second: float | None) -> str:
    """A rate in the unit of the configuration: `80.0 Mbit/s`."""
    if bytes_per_second is None:
        return "unlimited"
    return f"{bytes_per_second * 8 / 1e6:.1f} Mbit/s"


def duration(seconds: float | None) -> str:
    """`0.4 s`, `3 min 20 s`, `5 h 10 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(nanoseconds: int) -> str:
    """An instant in UTC, to the second."""
    return datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(answer: Fields) -> str:
    """The whole of `status`."""
    tap = answer["tap"]
    engine = tap.get("engine")
    tap_line = f"tap {tap.get('pid')} ({engine})" if tap.get("answers") else tap.get("message")
    lines = [
        f"{answer['tenant']}/{answer['host']}: agent {answer['pid']}, version {answer['version']}, "
        f"up {duration(answer['uptime_seconds'])}, {size(answer['memory_bytes'])}; {tap_line}"
    ]
    for group in answer["groups"]:
        lines += ["", *_group(group)]
    return "\n".join(lines)


def _group(group: Fields) -> list[str]:
    rows = [
        ("recovery point", _recovery_point(group)),
        ("positions", _positions(group)),
        ("lag", f"{size(group['lag']['bytes'])}, {_count(group['lag']['records'])} records"),
        ("ring", _ring(group["ring"])),
        ("spool", _spool(group["spool"])),
        ("sync", _sync(group["sync"])),
        ("gap", _gap(group["sync"])),
        ("sending", _sending(group)),
        ("ingest", _ingest(group["ingest"])),
        *disks(group),
        ("alert", _trouble(group["alert"])),
        *_mirrors(group.get("mirrors", [])),
        ("last failure", _trouble(group["failure"])),
    ]
    state = group["state"] + (f" ({group['cause']})" if group["cause"] else "")
    shown = [f"group {group['group']}: {group['phase'].replace('_', ' ')}, {state}"]
    return shown + [f"  {name:<14} {text}" for name, text in rows if text]


def _recovery_point(group: Fields) -> str:
    age = group["rpo_seconds"]
    text = "none yet" if age is None else f"{duration(age)} old"
    text += f" (target {duration(group['rpo_target_seconds'])})"
    stage, why = group["held_up_by"], group["held_up_why"]
    if stage in ("paused", "stopped"):
        return f"{text}; {why}"
    return f"{text}; held up by {stage}: {why}" if stage else text


def _positions(group: Fields) -> str:
    names = ("head", "sent", "received", "stored")
    text = ", ".join(f"{name} {_count(group[name])}" for name in names)
    return f"{text}; generation {(group['generation'] or '-')[:8]}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _ring(ring: Fields | None) -> str:
    if not ring:
        return ""
    return f"{ring['fill']:.0%} of {size(ring['bytes'])}"


def _spool(spool: Fields | None) -> str:
    if not spool or not (spool["last"] or spool["failure"]):
        return ""
    text = f"{size(spool['bytes'])} of {size(spool['capacity_bytes'])} wait on this host's disk"
    if spool["age_seconds"] is not None:
        text += f", the oldest {duration(spool['age_seconds'])} old"
    return f"{text}; {spool['failure']['message']}" if spool["failure"] else text


def _sync(sync: Fields | None) -> str:
    if not sync:
        return ""
    total, left = sync["total_bytes"], sync["remaining_bytes"]
    why = f"{sync['cause']}, {sync['why']}" if sync["why"] else sync["cause"]
    if not sync["has_begun"] or not total:
        return f"{why}: has not begun, {size(left)} to read"
    pace = rate(sync["bytes_per_second"])
    return (
        f"{why}: {(total - left) / total:.0%} of {size(total)}, {size(left)} left "
        f"at {pace} of disk, {_until_end(sync)}; {_comparison(sync['comparison'])}"
    )


def _gap(sync: Fields | None) -> str:
    if not sync:
        return ""
    since = sync["no_moment_after"]
    after = moment(since) if since else "the beginning"
    return f"no moment after {after} can be chosen until this sync ends; older ones stay good"


def _until_end(sync: Fields) -> str:
    if sync["cannot_end"]:
        return f"cannot end while so much is written: {sync['cannot_end']}"
    return f"about {duration(sync['eta_seconds'])} more"


def _comparison(compared: Fields) -> str:
    phase = compared["phase"]
    if phase == "given_up":
        return f"everything is sent: {compared['reason']}"
    if phase == "learning":
        return f"learning what the journal holds, {compared['tails']:,} segments to look at"
    if phase in ("comparing", "done"):
        same, differ = size(compared["same_bytes"]), size(compared["differ_bytes"])
        return f"compared with the journal: {same} the same, {differ} to send"
    return "sent without a comparison"


def _sending(group: Fields) -> str:
    rates, limits = group["rates"], group["limits"]
    text = f"{rate(rates['wire_bytes_per_second'])} on the wire"
    text += f" (limit {rate(limits['replication_bytes_per_second'])}"
    return text + f", syncs {rate(limits['sync_bytes_per_second'])})"


def _ingest(ingest: Fields) -> str:
    if ingest["epoch"] is None:
        return f"not connected (last {ingest['address'] or 'none'})"
    return f"{ingest['address']}, epoch {ingest['epoch']}"


def disks(group: Fields) -> list[tuple[str, str]]:
    """Name and description of each disk, and whether its marks can be trusted."""
    tap = group.get("tap") or {}
    rows = []
    for disk in tap.get("disks", []):
        name = disk.get("name", disk.get("disk"))
        text = f"{size(disk.get('size'))}, {disk.get('path', '')}"
        hot = disk.get("hot") or {}
        if hot.get("state") == "untrusted":
            text += (
                f"; UNTRUSTED, its hot-extent log cannot be written ({hot.get('reason')}): after "
                "an unclean stop of this host all of it is read"
            )
        rows.append((f"disk {name}", text))
        if tap.get("nbd_socket") and not disk.get("mirror"):
            uri = f"nbd+unix:///{quote(str(disk.get('disk')))}?socket={tap['nbd_socket']}"
            rows.append(("  reached at", uri))
    return rows


def _mirrors(mirrors: list[Fields]) -> list[tuple[str, str]]:
    rows = []
    for mirror in mirrors:
        text = f"{mirror['health']}: {mirror['why']}"
        job = mirror["job"]
        if job and mirror["health"] == "syncing" and job["total_bytes"]:
            text += f" ({size(job['done_bytes'])} of {size(job['total_bytes'])})"
        rows.append((f"mirror {mirror['disk']}", f"{text}; node {mirror['node']}, {mirror['qmp']}"))
    return rows


def _trouble(error: Fields | None) -> str:
    if not error:
        return ""
    return f"{error['message']} {error['hint']}".strip()


def attach(answer: Fields) -> str:
    """What the machine's side needs."""
    group, disk = answer["group"], answer["disk"]
    uri, socket = answer["uri"], answer["nbd_socket"]
    export = unquote(urlsplit(uri).path.removeprefix("/"))
    node = f"holdfast-{group}-{disk}"
    return "\n".join(
        [
            f"Disk {disk} of group {group} is served: {size(answer.get('size'))}.",
            "",
            f"  {uri}",
            "",
            "QEMU (the disk is raw; say so, or a guest could write another format's header):",
            f"  -blockdev driver=nbd,node-name={node}-net,server.type=unix,server.path={socket},"
            f"export={export},reconnect-delay={_RECONNECT_SECONDS}",
            f"  -blockdev driver=raw,node-name={node},file={node}-net,cache.direct=on",
            f"  -device virtio-blk-pci,drive={node}",
            "",
            "libvirt:",
            *(f"  {line}" for line in _libvirt(export, socket)),
        ]
    )


def attach_mirror(answer: Fields) -> str:
    """What begins now, and what the machine cannot do meanwhile."""
    mirror = answer["mirror"]
    return "\n".join(
        [
            f"Disk {answer['disk']} of group {answer['group']}, {size(answer['size'])}: "
            f"a mirror of node {mirror['node']} of the running machine.",
            f"Now {mirror['health']}: {mirror['why']}.",
            "",
            "Until it is detached QEMU refuses:",
            *(f"  - {what}" for what in answer["refused_meanwhile"]),
            "",
            "At the machine's next start, serve its disk from the tap instead "
            "(attach --disk): that costs less and refuses nothing.",
        ]
    )


def discover(answer: Fields) -> str:
    """Machines, their disks, and what protects them."""
    lines = []
    for machine in answer["machines"]:
        who = machine["name"] or machine["uuid"] or "unnamed"
        uuid = f", {machine['uuid']}" if machine["name"] and machine["uuid"] else ""
        lines.append(f"{who}{uuid}: {machine['state']} ({machine['source']})")
        lines += [f"  {_found(disk)}" for disk in machine["disks"]]
    for failed in answer["failed"]:
        lines.append(f"{failed['source']}: {failed['message']} {failed['hint']}".rstrip())
    return "\n".join(lines) or "No machine: name a QMP socket (--qmp) or libvirt (--libvirt)."


def _found(disk: Fields) -> str:
    name = disk["node"] or disk["target"] or "-"
    target = f" ({disk['target']})" if disk["target"] and disk["node"] else ""
    text = f"{name}{target}: {size(disk['size'])}, {disk['format']}, {disk['path'] or 'no file'}"
    by = disk["protected"]
    if by is None:
        return f"{text}; not protected"
    return f"{text}; disk {by['disk']} of group {by['group']} ({by['mode']}, {by['health']})"


def _libvirt(export: str, socket: str) -> list[str]:
    return [
        "<disk type='network' device='disk'>",
        "  <driver name='qemu' type='raw' cache='none' discard='unmap'/>",
        f"  <source protocol='nbd' name='{escape(export)}'>",
        f"    <host transport='unix' socket='{escape(socket)}'/>",
        f"    <reconnect delay='{_RECONNECT_SECONDS}'/>",
        "  </source>",
        "  <target dev='vda' bus='virtio'/>",
        "</disk>",
    ]


def checkpoint(answer: Fields) -> str:
    """A checkpoint that was made."""
    tag = f", tag {answer['tag']!r}" if answer.get("tag") else ""
    safe = "stored" if answer["stored"] else "in the stream, not yet stored"
    return f"checkpoint {answer['checkpoint']} at {answer['seq']:,}{tag}: {safe}"


def sync(answer: Fields) -> str:
    """A sync that was asked for."""
    disk = f"disk {answer['disk']}" if answer["disk"] else "every disk"
    return (
        f"group {answer['group']}: {disk} is read again, {size(answer['to_read_bytes'])}; "
        "holdfast-agent status shows how far it is"
    )


def limit(answer: Fields) -> str:
    """The limits that hold now."""
    replication = rate(answer["replication_bytes_per_second"])
    return (
        f"group {answer['group']}: replication {replication}, "
        f"syncs {rate(answer['sync_bytes_per_second'])}, "
        f"comparisons {rate(answer['scan_bytes_per_second'])} of disk"
    )
