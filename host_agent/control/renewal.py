"""Renews the host's certificate by itself: at half of its life, and up to 7 days after its end."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from host_agent.control import enrol
from host_agent.stream.pace import Backoff
from host_agent.stream.ports import Clock, Offload, Random
from host_agent.wire.errors import HoldfastError

_log = logging.getLogger("holdfast.agent")

#: The wall's clock may be set: it is looked at this often, however far the moment is.
_LOOK_SECONDS = 60.0
_AGAIN_SECONDS = (5.0, 600.0)
#: Hosts that joined together do not renew together: up to this share of what is left later.
_JITTER = 0.1


class Renewal:
    """Run `run` as a task."""

    def __init__(self, directory: Path, clock: Clock, random: Random, offload: Offload) -> None:
        self._directory = directory
        self._clock, self._random, self._offload = clock, random, offload
        self._backoff = Backoff(random, *_AGAIN_SECONDS)
        self.failure: HoldfastError | None = None

    async def run(self) -> None:
        """Never returns; cancel it."""
        moment = self._moment()
        while True:
            left = moment - self._clock.wall_ns() / 1e9
            if left > 0:
                await asyncio.sleep(min(left, _LOOK_SECONDS))
                continue
            try:
                await self._offload(partial(enrol.renew, self._directory))
            except HoldfastError as error:
                self.failure = error
                _log.warning("the certificate could not be renewed: %s", error)
                await asyncio.sleep(self._backoff.next())
            else:
                self.failure = None
                self._backoff.reset()
                moment = self._moment()
                _log.info("the certificate was renewed, the next time at %s", _shown(moment))

    @property
    def expires_at(self) -> str:
        """When the certificate ends; EnrolmentFailed."""
        return str(enrol.load_identity(self._directory).facts.get("expires_at"))

    def _moment(self) -> float:
        """When to renew, seconds since 1970 UTC; EnrolmentFailed."""
        facts = enrol.load_identity(self._directory).facts
        renew_at, expires_at = (_seconds(str(facts[k])) for k in ("renew_at", "expires_at"))
        return renew_at + max(0.0, expires_at - renew_at) * _JITTER * self._random.fraction()


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
