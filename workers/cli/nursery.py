"""The parent of an installation's processes: imports, and nothing that belongs to anybody.

`holdfast up` asks it on the descriptor that its first argument names for one process after the
other; the second is the installation's folder, for whoever lists processes.
Each is a fork, told by its environment alone, that goes on as if it had been started by itself.
What is here is in every child: so there is never a secret, an event loop, a thread or a connection.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
from typing import Any

from workers.cli.processes import MODULES, PROCESSES
from workers.supervisor.system import check_single_threaded, set_name

_MESSAGE_BYTES_MAX = 128 * 1024
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Fork until the other end closes. In a child: what the process of that name returns."""
    end = socket.socket(fileno=int(sys.argv[1]))
    set_name("hf-nursery")
    for name in MODULES:
        importlib.import_module(name)
    check_single_threaded()
    gc.collect()
    # What is there now is looked at by no collection of a child, which would copy its pages.
    gc.freeze()
    verb = _serve(end)
    return 0 if verb is None else PROCESSES[verb]()


def _serve(end: socket.socket) -> str | None:
    """In the parent None, once there is nobody to serve; in a child its name."""
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([end.fileno(), *children], [], [])
        for one in ready:
            if one != end.fileno():
                _tell_end(end, children.pop(one), one)
                continue
            order, log = _receive(end)
            if order is None:
                return None
            pid = os.fork()
            if pid == 0:
                end.close()
                for handle in children:
                    os.close(handle)
                _become(order["verb"], order["environment"], log)
                return str(order["verb"])
            os.close(log)
            handle = os.pidfd_open(pid)
            children[handle] = pid
            # With its handle: by the time that this is read it may have ended and be gone.
            socket.send_fds(end, [json.dumps({"pid": pid}).encode()], [handle])


def _receive(end: socket.socket) -> tuple[dict[str, Any] | None, int]:
    data, descriptors, _, _ = socket.recv_fds(end, _MESSAGE_BYTES_MAX, 1)
    return (json.loads(data), descriptors[0]) if data else (None, -1)


def _tell_end(end: socket.socket, pid: int, handle: int) -> None:
    os.close(handle)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        told = {"pid": pid, "status": os.waitstatus_to_exitcode(status)}
        end.send(json.dumps(told).encode())


def _become(verb: str, environment: dict[str, str], log: int) -> None:
    """What a process that is started has of its own. It ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    os.setpgid(0, 0)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.argv = ["holdfast", verb]
    set_name(f"hf-{verb}")


if __name__ == "__main__":
    sys.exit(main())
