"""Simulated time: an event loop that jumps, processes that die and freeze, work that blocks.

Everything of a schedule runs here in one order that its seed alone decides. What blocks (the
store's callers) runs on a thread of its own, but never beside anything: the loop hands the turn
over and waits for it to come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

Result = TypeVar("Result")
_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Stuck(AssertionError):
    """Nothing is left to happen, or it happens for ever."""


class Killed(BaseException):
    """Ends work that blocks when its process is gone. No product code catches it."""


class SimLoop(asyncio.BaseEventLoop):
    """asyncio's loop without a selector: when nothing is ready, time is that of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._numbers = 0
        self._queue: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.turns = 0
        self.turns_max = 2_000_000
        self.defects: list[str] = []
        self.set_task_factory(_make_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._on_error)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._now

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's; of two timers for the same instant the older goes first."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        heapq.heappush(self._queue, (when, self._numbers, timer))
        return timer

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._jump()
        queue, now = self._queue, self._now
        while queue and queue[0][0] <= now:
            timer = heapq.heappop(queue)[2]
            if not timer.cancelled():
                ready.append(timer)
        self.turns += len(ready)
        if self.turns > self.turns_max:
            raise Stuck(f"{self.turns} callbacks by second {now:.1f}: it goes round in circles")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_PROCESS)
            if process is not None and process.is_stopped:
                process.parked.append(handle)
            else:
                handle._run()

    def _jump(self) -> None:
        while self._queue and self._queue[0][2].cancelled():
            heapq.heappop(self._queue)
        if not self._queue:
            raise Stuck("everything waits, and nothing will ever happen")
        self._now = max(self._now, self._queue[0][0])

    def _on_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.defects.append(f"{context.get('message')}: {error!r}")

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else may wake it."""


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **given: Any
) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, **given)
    process = _PROCESS.get()
    if process is not None:
        process.add(task)
    return task


class Process:
    """What dies together. `start` runs coroutines in it; ports ask `is_alive` before they act."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_stopped = False
        self.parked: list[asyncio.Handle] = []
        self.on_death: list[Callable[[], None]] = []
        self._loop = loop
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.jobs: dict[_Job, None] = {}
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def add(self, task: asyncio.Task[Any]) -> None:
        """A task of this process."""
        self._tasks[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it as one of this process's tasks. What it raises is a defect."""
        task = self.context.run(self._loop.create_task, work)
        task.add_done_callback(self._on_end)
        return task

    def _on_end(self, task: asyncio.Task[Any]) -> None:
        if self.is_alive and not task.cancelled() and task.exception() is not None:
            error = task.exception()
            self._loop.defects.append(f"{self.name}: {type(error).__name__}: {error}")
            self._loop.call_exception_handler({"message": self.name, "exception": error})

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback in it soon, or once it goes on."""
        self._loop.call_soon(callback, *args, context=self.context)

    def kill(self) -> None:
        """As SIGKILL does: nothing that it still runs reaches anybody."""
        if not self.is_alive:
            return
        self.is_alive = False
        for callback in self.on_death:
            callback()
        self.resume()
        for task in list(self._tasks):
            task.cancel()
        for job in list(self.jobs):
            job.kill()

    def stop(self) -> None:
        """As SIGSTOP does."""
        self.is_stopped = True

    def resume(self) -> None:
        """As SIGCONT does: timers that are over fire at once."""
        self.is_stopped = False
        parked, self.parked = self.parked, []
        self._loop._ready.extend(parked)  # type: ignore[attr-defined]


class _Worker:
    """A thread that has its turn only while the loop's waits."""

    _idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._work: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    @classmethod
    def take(cls) -> _Worker:
        return cls._idle.pop() if cls._idle else cls()

    def give(self) -> None:
        self._idle.append(self)

    def begin(self, work: Callable[[], None]) -> None:
        self._work = work
        self.switch()

    def switch(self) -> None:
        """The loop's side: let it work until it blocks or ends."""
        self._go.release()
        self._back.acquire()

    def wait(self) -> None:
        """The thread's side: block."""
        self._back.release()
        self._go.acquire()

    def _run(self) -> None:
        while True:
            self._go.acquire()
            work = self._work
            assert work is not None
            work()
            self._work = work = None
            self._back.release()


# Threads do not come along into a child.
os.register_at_fork(after_in_child=_Worker._idle.clear)

_JOB: threading.local = threading.local()


class _Job:
    """One piece of blocking work of a process."""

    def __init__(
        self, process: Process, work: Callable[[], Any], done: asyncio.Future[Any]
    ) -> None:
        self._process = process
        self._work = work
        self._done = done
        self._worker = _Worker.take()
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._is_over = False
        self._is_killed = False
        self._is_begun = False
        self._tickets = 0
        process.jobs[self] = None

    def begin(self) -> None:
        if not self._is_over:
            self._is_begun = True
            self._worker.begin(self._run)
            self._after()

    def _run(self) -> None:
        _JOB.current = self
        try:
            self._outcome = self._work()
        except BaseException as error:  # noqa: BLE001 - it belongs to who awaits
            self._error = error
        finally:
            _JOB.current = None
            self._is_over = True

    def block(self, register: Callable[[Callable[[Any], None]], None]) -> Any:
        """In the thread: wait until what `register` was given is called with the answer."""
        if self._is_killed:
            raise Killed
        self._tickets += 1
        ticket = self._tickets

        def answer(value: Any) -> None:
            if ticket == self._tickets and not self._is_over and not self._is_killed:
                self._tickets += 1
                self._process.call(self._resume, value)

        register(answer)
        self._worker.wait()
        if self._is_killed:
            raise Killed
        return self._outcome

    def _resume(self, value: Any) -> None:
        if self._is_over or self._is_killed:
            return
        self._outcome = value
        self._worker.switch()
        self._after()

    def kill(self) -> None:
        if not self._is_over:
            self._is_killed = True
            if self._is_begun:
                self._worker.switch()
            self._is_over = True
            self._after()

    def _after(self) -> None:
        if not self._is_over:
            return
        self._process.jobs.pop(self, None)
        self._worker.give()
        if self._done.done():
            return
        if self._is_killed or isinstance(self._error, Killed):
            self._done.cancel()
        elif self._error is not None:
            self._done.set_exception(self._error)
        else:
            self._done.set_result(self._outcome)


def block(register: Callable[[Callable[[Any], None]], None]) -> Any:
    """Block the work that calls this until the callback that `register` gets is called."""
    job: _Job | None = getattr(_JOB, "current", None)
    assert job is not None, "only offloaded work may block"
    return job.block(register)


async def offload(work: Callable[[], Result]) -> Result:
    """Run blocking work in simulated time, for the process that asks."""
    loop = asyncio.get_running_loop()
    process = _PROCESS.get()
    assert process is not None
    done: asyncio.Future[Result] = loop.create_future()
    job = _Job(process, work, done)
    loop.call_soon(job.begin)
    return await done


@contextmanager
def simulation() -> Iterator[SimLoop]:
    """A loop, closed in the end."""
    loop = SimLoop()
    asyncio.set_event_loop(loop)
    try:
        yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
