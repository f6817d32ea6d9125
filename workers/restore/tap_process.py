"""A tap of one's own: started for one restore, and ended with it.

What talks to it is imported once it runs: it starts beside that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from host_agent.wire.failpoints import failpoint
from workers.restore.errors import TapFailed, TapMissing, TargetExists, target_error

if TYPE_CHECKING:
    from workers.restore.tap_client import TapChannel

_START_SECONDS = 10.0
#: Files in memory.
_MEMORY = "/dev/shm"  # noqa: S108
_PR_SET_PDEATHSIG = 1
#: Longest path of a Unix socket, and what the tap appends to its run directory.
_SOCKET_PATH_MAX = 107
_SOCKET_NAME_ROOM = 40


def find_tap() -> Path:
    """The program: HOLDFAST_TAP, beside the interpreter, or on PATH; TapMissing."""
    named = os.environ.get("HOLDFAST_TAP")
    candidates = [named] if named else [str(Path(sys.executable).parent / "holdfast-tap")]
    if not named and (on_path := shutil.which("holdfast-tap")):
        candidates.append(on_path)
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return Path(candidate)
    raise TapMissing(
        f"{named} is no program." if named else "The program holdfast-tap cannot be found.",
        hint="Install holdfast-agent for this platform, or set HOLDFAST_TAP to the program's path.",
    )


def _die_with_parent(libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def started_tap(folder: Path) -> Iterator[TapProcess]:
    """A tap that starts, in a folder that is ours while the context lasts: sockets, state, scratch.

    SIGTERM ends the context in order, as SIGINT does. TapMissing, TapFailed, TargetExists,
    TargetFailed.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _claim(folder, scratch_of(folder))
        failpoint("serve_after_folder_before_tap")
        try:
            with TapProcess(folder) as tap:
                yield tap
        finally:
            _clear(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def scratch_of(folder: Path) -> Path:
    """Where guests' writes go."""
    return folder.absolute() / "scratch"


def _claim(folder: Path, scratch: Path) -> None:
    """Make the folder ours; TargetExists if another restore serves from it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.mkdir(mode=0o700)
    except FileExistsError:
        raise TargetExists(
            f"{folder} is used by another restore, or one that did not end in order.",
            hint=f"Name another --socket-dir; or, if nothing serves from it, remove {folder}.",
        ) from None
    except OSError as error:
        raise target_error(folder, "used", error) from error


def _clear(folder: Path) -> None:
    """Remove what was made. What guests wrote is gone with it."""
    for name in ("scratch", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "tap.log").unlink(missing_ok=True)


class TapProcess:
    """`holdfast-tap` in a directory of its own. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """`directory` gets the sockets and the tap's log."""
        self.directory = directory.absolute()
        self._run = self.directory / "run"
        self._log = self.directory / "tap.log"
        self._memory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: TapChannel | None = None

    def __enter__(self) -> TapProcess:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        binary = find_tap()
        if len(str(self._run)) + _SOCKET_NAME_ROOM > _SOCKET_PATH_MAX:
            raise TapFailed(
                f"{self.directory} is too long a path for sockets.",
                hint="Name a --socket-dir with a shorter path (at most 60 characters).",
            )
        try:
            for folder in (self.directory, self._run):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What must not outlive the host lies in memory, and goes when we end: making it durable
            # would hold up a guest's first read.
            self._memory = Path(tempfile.mkdtemp(prefix="holdfast-", dir=_MEMORY))
            output = self._log.open("wb")
        except OSError as error:
            raise target_error(self.directory, "used", error) from error
        libc = ctypes.CDLL(None)
        with output:
            # Of its own session: Ctrl-C reaches us alone, and we end it in order. If we are killed,
            # so is it.
            self._process = subprocess.Popen(
                [
                    str(binary),
                    *("--run-dir", str(self._run)),
                    *("--state-dir", str(self._memory / "state")),
                    *("--ring-dir", str(self._memory)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _die_with_parent(libc),
            )

    def control(self) -> TapChannel:
        """Its control socket, as soon as it listens there; TapFailed."""
        if self._control is None:
            self._control = self._connect()
            self._control.call("hello", {"version": 1})
        return self._control

    def _connect(self) -> TapChannel:
        from workers.restore.tap_client import TapChannel

        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.check()
            with contextlib.suppress(TapFailed):
                return TapChannel(self._run / "tap.sock")
            if time.monotonic() > deadline:
                raise TapFailed(f"The tap does not answer: {self.log_end()}")
            time.sleep(0.01)

    def check(self) -> None:
        """Raise TapFailed if the tap has ended."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise TapFailed(f"The tap ended with status {status}: {self.log_end()}")

    def log_end(self) -> str:
        """The last that the tap said."""
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing."

    def stop(self) -> None:
        """End the tap at once. An orderly stop would make durable what is thrown away next."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._memory is not None:
            shutil.rmtree(self._memory, ignore_errors=True)
            self._memory = None
