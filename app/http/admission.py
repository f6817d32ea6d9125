"""How many requests a credential and a tenant may make in this process; what is above is refused.

Only who has come in is counted: nobody can use up a tenant's share without its credential.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from app.kit.pace import Pace
from app.kit.problems import Problem

#: Whoever asked longest ago is forgotten: with a full bucket, after so many others.
_KEPT_MAX = 10_000


@dataclass(frozen=True)
class Rate:
    """Requests a second in the long run, and at once after a pause."""

    per_second: float
    burst: float


class _Buckets:
    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._kept: OrderedDict[bytes, Pace] = OrderedDict()

    def is_empty(self, key: bytes, now: float) -> bool:
        pace = self._kept.get(key)
        return pace is not None and not pace.has_one(now)

    def takes(self, key: bytes, now: float) -> bool:
        pace = self._kept.get(key)
        if pace is None:
            pace = self._kept[key] = Pace(self._rate.per_second, self._rate.burst)
            if len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return pace.takes(now)


class Admission:
    """Counts by credential and by tenant."""

    def __init__(
        self, credential: Rate, tenant: Rate, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._credentials, self._tenants = _Buckets(credential), _Buckets(tenant)
        self._now = now

    def check(self, bearer: str) -> None:
        """Before anything is looked up: Problem `too_many_requests` for who has asked too often."""
        if bearer and self._credentials.is_empty(_key(bearer), self._now()):
            raise _too_many("This credential")

    def admit(self, bearer: str, tenant_id: UUID | None) -> None:
        """Count a request of somebody who has come in; Problem `too_many_requests`."""
        now = self._now()
        if bearer and not self._credentials.takes(_key(bearer), now):
            raise _too_many("This credential")
        if tenant_id is not None and not self._tenants.takes(tenant_id.bytes, now):
            raise _too_many("This tenant")


def _key(bearer: str) -> bytes:
    return hashlib.sha256(bearer.encode()).digest()


def _too_many(who: str) -> Problem:
    return Problem(
        "too_many_requests",
        f"{who} makes more requests than are let through.",
        hint="Wait for as long as Retry-After says, and ask less often.",
    )
