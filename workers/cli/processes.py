"""The processes of the service, each told by its environment alone.

They start without the library of the command line, and each imports what it needs and nothing else:
an installation on one machine runs all of them, and waits for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping


def run_api() -> int:
    """`holdfast api`: the REST API."""
    from app.http.process import ApiSettings, run_api
    from app.kit.settings import read_settings

    return run_api(read_settings(ApiSettings))


def run_dsm() -> int:
    """`holdfast dsm`: the data services managers."""
    from app.dsm.process import DsmSettings, run_dsm
    from app.kit.settings import read_settings

    return run_dsm(read_settings(DsmSettings))


def run_keys() -> int:
    """`holdfast keys`: the key service."""
    from app.keys.process import KeysSettings, run_keys
    from app.kit.settings import read_settings

    return run_keys(read_settings(KeysSettings))


def run_worker() -> int:
    """`holdfast worker`: Celery's worker, which does what is due."""
    from app.kit.logs import begin_logging
    from app.kit.settings import read_settings
    from workers.tasks.celery import configured
    from workers.tasks.runner import WorkerSettings, check_database

    settings = read_settings(WorkerSettings)
    begin_logging(settings.log_level)
    check_database(settings)
    if settings.worker_health_listen is not None:
        from workers.tasks.health import WorkerHealth

        WorkerHealth().serve(settings.worker_health_listen)
    # Not by Celery's own command line, which loads a terminal's library. A pool's children are
    # told what we are by the environment.
    worker = configured(settings).Worker(
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def run_datanode() -> int:
    """`holdfast datanode`: a data node's supervisor."""
    from workers.supervisor.command import read_settings, run_datanode

    return run_datanode(read_settings(os.environ))


PROCESSES: Mapping[str, Callable[[], int]] = {
    "api": run_api,
    "dsm": run_dsm,
    "keys": run_keys,
    "worker": run_worker,
    "datanode": run_datanode,
}

#: What the API, the managers and workers import, at once or with their first connection: whoever
#: forks them has it already.
MODULES = (
    *("app.http.process", "app.dsm.process", "workers.tasks.celery", "celery.apps.worker"),
    *("psycopg", "kombu.transport.redis"),
)
