"""Which commands this host has taken, and which of its answers the manager does not have yet.

The highest (epoch, number) is on disk before anything is done, so that a manager that was replaced
cannot be obeyed, not even by an agent that started in between.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from host_agent.control.errors import EpochStale, Interrupted, StateUnusable
from host_agent.control.saver import Saver
from host_agent.control.state_dir import usable
from host_agent.stream.ports import Offload
from host_agent.wire.control import Answer, failure_of

#: Answers that wait for the manager. The oldest go when there are more: their commands' states
#: are then for the manager to find out.
ANSWERS_MAX = 64
Place = tuple[int, int]


class _Kept(msgspec.Struct):
    epoch: int = 0
    number: int = 0
    begun: list[Place] = []
    answers: list[Answer] = []


class Orders:
    """One manager's commands to one host. For one loop."""

    def __init__(self, path: Path, offload: Offload) -> None:
        self._kept = _load(path)
        self._saver = Saver(path, lambda: msgspec.json.encode(self._kept), offload)
        for epoch, number in self._kept.begun:
            self._put(_interrupted(epoch, number))
        self._kept.begun = []

    @property
    def highest(self) -> Place:
        """(epoch, number) of the newest command that was taken."""
        return self._kept.epoch, self._kept.number

    @property
    def waiting(self) -> list[Answer]:
        """Answers that the manager may not have, oldest first."""
        return list(self._kept.answers)

    async def take(self, epoch: int, number: int) -> None:
        """Return when it may be obeyed; EpochStale if it is not newer, StateUnusable."""
        if (epoch, number) <= self.highest:
            raise EpochStale(
                f"Command {number} of epoch {epoch} is not above {self._kept.number} of "
                f"{self._kept.epoch}, which this host has taken.",
                hint="Another manager commands this host now.",
            )
        self._kept.epoch, self._kept.number = epoch, number
        self._kept.begun.append((epoch, number))
        try:
            await self._saver.save()
        except StateUnusable:
            self._kept.begun.remove((epoch, number))
            raise

    async def finish(self, answer: Answer) -> None:
        """What became of a command; kept until `taken`. StateUnusable."""
        place = (answer.epoch, answer.number)
        if place in self._kept.begun:
            self._kept.begun.remove(place)
        self._put(answer)
        await self._saver.save()

    def taken(self, epoch: int, number: int) -> None:
        """The manager has that answer. It reaches the disk with what comes next."""
        self._kept.answers = [
            one for one in self._kept.answers if (one.epoch, one.number) != (epoch, number)
        ]

    def _put(self, answer: Answer) -> None:
        self._kept.answers = [*self._kept.answers, answer][-ANSWERS_MAX:]


def _interrupted(epoch: int, number: int) -> Answer:
    error = Interrupted(
        "The agent ended while it carried this out.",
        hint="Look at what is so now, and ask again if need be.",
        retryable=True,
    )
    return Answer(epoch, number, "failed", error=failure_of(error))


def _load(path: Path) -> _Kept:
    with usable(path):
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return _Kept()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # To begin from zero would obey a manager that was replaced long ago.
            raise StateUnusable(
                f"{path} cannot be used: {error}.",
                hint="Restore it, or have this host enrolled anew.",
            ) from None
