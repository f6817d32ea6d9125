"""The command `holdfast-agent`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from host_agent import __version__
from host_agent.control import client, render
from host_agent.control.errors import BadConfig
from host_agent.control.identity import add_identity_verbs
from host_agent.wire.errors import HoldfastError

_WATCH_SECONDS = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command. 0 for success, 1 with a sentence on standard error, 2 for wrong usage."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except HoldfastError as error:
        return _complain(error, as_json=getattr(given, "json", False))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def _complain(error: HoldfastError, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(error.as_dict()))
    print(f"holdfast-agent: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="holdfast-agent", description="Streams what the tap of this host recorded."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--identity",
        metavar="DIR",
        help="the folder of a host that enrolled, in place of a configuration",
    )
    common.add_argument(
        "--config",
        metavar="FILE",
        help=f"configuration; else ${client.CONFIG_VARIABLE}, ./agent.toml, "
        "/etc/holdfast/agent.toml",
    )
    answers = argparse.ArgumentParser(add_help=False, parents=[common])
    answers.add_argument("--json", action="store_true", help="print one JSON object")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = verbs.add_parser("run", parents=[common], help="run the agent until it is told to stop")
    run.set_defaults(run=_run)
    add_identity_verbs(verbs)
    _add_disk_verbs(verbs, answers)
    _add_group_verbs(verbs, answers)
    return parser


def _add_disk_verbs(verbs: Any, answers: argparse.ArgumentParser) -> None:
    attach = verbs.add_parser("attach", parents=[answers], help="protect a disk")
    attach.add_argument("group", metavar="GROUP")
    attach.add_argument("name", metavar="NAME", help="the disk's name in the group")
    source = attach.add_mutually_exclusive_group(required=True)
    source.add_argument("--disk", metavar="PATH", help="raw file or block device")
    source.add_argument("--qmp", metavar="SOCKET", help="QMP socket of the running machine")
    attach.add_argument("--node", metavar="NODE", help="with --qmp: the disk's node in QEMU")
    attach.add_argument(
        "--cache",
        choices=("auto", "none", "writeback"),
        default="auto",
        help="none: past the host's page cache; auto: that for block devices",
    )
    attach.set_defaults(run=_attach)
    discover = verbs.add_parser(
        "discover", parents=[answers], help="the machines of this host and their disks"
    )
    discover.add_argument("--qmp", metavar="SOCKET", action="append", default=[])
    discover.add_argument("--libvirt", metavar="URI", action="append", default=[])
    discover.set_defaults(run=_discover)
    detach = verbs.add_parser("detach", parents=[answers], help="stop protecting a disk")
    detach.add_argument("group", metavar="GROUP")
    detach.add_argument("name", metavar="NAME")
    detach.add_argument("--force", action="store_true", help="even while a machine uses it")
    detach.set_defaults(run=_detach)


def _add_group_verbs(verbs: Any, answers: argparse.ArgumentParser) -> None:
    status = verbs.add_parser("status", parents=[answers], help="how all groups are")
    status.add_argument("--watch", action="store_true", help="again every second")
    status.set_defaults(run=_status)
    checkpoint = verbs.add_parser("checkpoint", parents=[answers], help="mark this moment")
    checkpoint.add_argument("group", metavar="GROUP")
    checkpoint.add_argument("--tag", metavar="TEXT", help="a name to find it by")
    checkpoint.add_argument("--kind", choices=("crash", "application", "tagged"))
    checkpoint.add_argument("--wait", action="store_true", help="return when it is stored")
    checkpoint.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0)
    checkpoint.set_defaults(run=_checkpoint)
    limit = verbs.add_parser(
        "limit", parents=[answers], help="change the group's bandwidth until the agent restarts"
    )
    limit.add_argument("group", metavar="GROUP")
    for name, what in (
        ("replication", "what machines write now"),
        ("sync", "what syncs send"),
        ("scan", "what comparisons read of disks"),
    ):
        limit.add_argument(
            f"--{name}",
            metavar="MBIT",
            type=_rate,
            default=argparse.SUPPRESS,
            help=f"{what}; or: none",
        )
    limit.set_defaults(run=_limit)
    sync = verbs.add_parser(
        "sync", parents=[answers], help="read disks again; what the journal has is not sent"
    )
    sync.add_argument("group", metavar="GROUP")
    sync.add_argument("--disk", metavar="NAME", help="this disk only")
    sync.add_argument("--full", action="store_true", help="send everything, compare nothing")
    sync.add_argument("--yes", action="store_true", help="do not ask")
    sync.set_defaults(run=_sync)
    for name, text in (
        ("pause", "stop sending; what is recorded stays, nothing is discarded"),
        ("resume", "go on after a pause or an alert"),
        ("resync", "bring everything over again, in a new generation"),
    ):
        verb = verbs.add_parser(name, parents=[answers], help=text)
        verb.add_argument("group", metavar="GROUP")
        verb.set_defaults(run=_plain, verb=name)


def _run(given: argparse.Namespace) -> int:
    # One thread of a library that is used for small arrays only; it takes memory for each core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if given.identity is not None:
        from host_agent.control.tenants import run_parent

        return run_parent(Path(given.identity))
    from host_agent.control.process import run_agent

    return run_agent(client.find_config(given.config))


def _ask(given: argparse.Namespace, request: dict[str, Any], seconds: float = 120.0) -> Any:
    if given.identity is not None:
        socket = client.socket_of_identity(Path(given.identity))
    else:
        socket = client.socket_of(client.find_config(given.config))
    return client.ask(socket, request, seconds)


def _show(given: argparse.Namespace, answer: dict[str, Any], text: str) -> int:
    print(json.dumps(answer) if given.json else text)
    return 0


def _attach(given: argparse.Namespace) -> int:
    if (given.qmp is None) != (given.node is None):
        raise BadConfig(
            "--qmp and --node belong together.", hint="holdfast-agent discover names both."
        )
    if given.qmp is not None:
        return _attach_mirror(given)
    path = str(Path(given.disk).absolute())
    answer = _ask(
        given,
        {
            "do": "attach",
            "group": given.group,
            "disk": given.name,
            "path": path,
            "cache": given.cache,
        },
    )
    return _show(given, answer, render.attach(answer))


def _attach_mirror(given: argparse.Namespace) -> int:
    where = {"qmp": str(Path(given.qmp).absolute()), "node": given.node}
    answer = _ask(given, {"do": "attach", "group": given.group, "disk": given.name, **where})
    return _show(given, answer, render.attach_mirror(answer))


def _discover(given: argparse.Namespace) -> int:
    sockets = [str(Path(one).absolute()) for one in given.qmp]
    answer = _ask(given, {"do": "discover", "qmp": sockets, "libvirt": given.libvirt})
    _show(given, answer, render.discover(answer))
    return 1 if answer["failed"] else 0


def _detach(given: argparse.Namespace) -> int:
    request = {"do": "detach", "group": given.group, "disk": given.name, "force": given.force}
    answer = _ask(given, request)
    return _show(given, answer, f"disk {given.name} of group {given.group} is detached")


def _status(given: argparse.Namespace) -> int:
    while True:
        answer = _ask(given, {"do": "status"})
        text = render.status(answer)
        if given.watch and not given.json:
            # Home and clear, so that the figures stay in place.
            text = f"\x1b[H\x1b[2J{text}"
        _show(given, answer, text)
        if not given.watch:
            return 0
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)


def _checkpoint(given: argparse.Namespace) -> int:
    request = {
        "do": "checkpoint",
        "group": given.group,
        "tag": given.tag,
        "kind": given.kind,
        "wait": given.wait,
        "timeout": given.timeout,
    }
    answer = _ask(given, request, given.timeout + 30.0)
    return _show(given, answer, render.checkpoint(answer))


def _rate(text: str) -> float | None:
    return None if text == "none" else float(text)


def _limit(given: argparse.Namespace) -> int:
    request: dict[str, Any] = {"do": "limit", "group": given.group}
    for name in ("replication", "sync", "scan"):
        if name in given:
            request[name] = getattr(given, name)
    answer = _ask(given, request)
    return _show(given, answer, render.limit(answer))


def _sync(given: argparse.Namespace) -> int:
    what = f"disk {given.disk}" if given.disk else "every disk"
    how = "sent whole" if given.full else "compared with the journal, and sent where it differs"
    print(
        f"{what} of group {given.group} is read again and {how}. The machine goes on. Until it is "
        "over no checkpoint can be made; those that are there stay good.",
        file=sys.stderr,
    )
    if not given.yes and sys.stdin.isatty() and input("Go on? [y/N] ").strip().lower() != "y":
        return 1
    answer = _ask(
        given, {"do": "sync", "group": given.group, "disk": given.disk, "full": given.full}
    )
    return _show(given, answer, render.sync(answer))


def _plain(given: argparse.Namespace) -> int:
    answer = _ask(given, {"do": given.verb, "group": given.group})
    return _show(given, answer, f"group {given.group}: {given.verb} is under way")


if __name__ == "__main__":
    sys.exit(main())
