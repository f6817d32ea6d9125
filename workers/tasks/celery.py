"""The Celery application of `holdfast worker`, and its one task."""

from __future__ import annotations

from uuid import UUID

from celery import Celery, Task
from celery.signals import worker_process_init, worker_process_shutdown

from app.jobs.relay import TASK
from app.jobs.service import JobKey
from app.kit.settings import read_settings
from workers.tasks.runner import Runner, WorkerSettings

#: A broker gives a message again that was not acknowledged for so long; a job's lease decides.
_VISIBILITY_SECONDS = 3600

celery_app = Celery("holdfast", set_as_current=False)
_runner: Runner | None = None


def configured(settings: WorkerSettings) -> Celery:
    """The application for this broker."""
    celery_app.conf.update(
        broker_url=settings.broker_url,
        broker_transport_options={"visibility_timeout": _VISIBILITY_SECONDS},
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_concurrency=settings.worker_processes,
        # A pool of one would be a second process for nothing: what opens keys has its own anyway.
        worker_pool="solo" if settings.worker_processes == 1 else "prefork",
        worker_send_task_events=False,
    )
    return celery_app


@worker_process_init.connect(weak=False)
def _begin(**_: object) -> None:
    """In each process that does jobs, after the fork if there was one: its loop and connections."""
    global _runner
    _runner = Runner(read_settings(WorkerSettings))


@worker_process_shutdown.connect(weak=False)
def _end(**_: object) -> None:
    if _runner is not None:
        _runner.close()


@celery_app.task(name=TASK, bind=True)
def job(_task: Task[[str, str], str], tenant_id: str, job_id: str) -> str:
    """Do a job if it is due and nobody does it. Returns what came of it, for the log."""
    assert _runner is not None
    return _runner.run(JobKey(UUID(tenant_id), UUID(job_id)))
