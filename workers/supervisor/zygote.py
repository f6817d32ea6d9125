"""The parent of a data node's processes: imports, and nothing that belongs to anybody.

A tenant's process has to be there within milliseconds and cost little memory of its own. So it is
forked from here, where everything is imported and warmed. What is here is in every child: so there
is never a secret, a TLS context, an event loop, a thread or a connection. A child gets its tenant's
record over a socket pair after the fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import traceback

from workers.storage.s3 import warm
from workers.supervisor.channel import ChannelClosed, receive
from workers.supervisor.child import run_child
from workers.supervisor.kinds import ROUTER, SERVICES
from workers.supervisor.router import run_router
from workers.supervisor.system import check_single_threaded, set_name


def main() -> int:
    """Fork what is asked for on the descriptor that the first argument names, until it closes."""
    end = socket.socket(fileno=int(sys.argv[1]))
    # A Ctrl-C is for the supervisor, which ends everything in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in SERVICES.values():
        importlib.import_module(name)
    warm()
    check_single_threaded()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ChannelClosed):
        while True:
            message, descriptors = receive(end)
            _fork(end, message["kind"], descriptors)
    return 0


def _fork(end: socket.socket, kind: str, descriptors: list[int]) -> None:
    """A grandchild: it belongs to the supervisor, which reaps it, also after we are gone."""
    between = os.fork()
    if between:
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(between, 0)
        return
    if os.fork():
        os._exit(0)
    status = 1
    try:
        end.close()
        set_name(f"hf-{kind}")
        life = run_router if kind == ROUTER else run_child
        status = life(socket.socket(fileno=descriptors[0]))
    except Exception:  # noqa: BLE001 - a defect: it is shown, and this process ends
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
