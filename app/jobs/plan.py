"""Which jobs there are, how often, and when one that failed is tried again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
RETRY_SECONDS_MIN = 10
RETRY_SECONDS_MAX = _HOUR
#: So many failures in a row are told to people.
FAILURES_TOLD = 3


class JobKind(StrEnum):
    """A job's kind; `vpg_…` are a group's, the others a tenant's."""

    VPG_MAINTAIN = "vpg_maintain"  #: index objects, hash lists, folding
    VPG_COLLECT = "vpg_collect"
    VPG_SCRUB = "vpg_scrub"
    METER_USAGE = "meter_usage"
    RUN_DUE = "run_due"  #: what waited before it destroys history
    TIDY_RECORDS = "tidy_records"  #: old events, answers kept for repeats

    @property
    def is_of_vpg(self) -> bool:
        """Whether its subject is a group."""
        return self.value.startswith("vpg_")


@dataclass(frozen=True)
class Period:
    """How often a job runs, and how long one run may be silent, seconds."""

    every: int
    lease: int


PERIODS: Mapping[JobKind, Period] = {
    JobKind.VPG_MAINTAIN: Period(_HOUR, 2 * _MINUTE),
    JobKind.VPG_COLLECT: Period(_DAY, 2 * _MINUTE),
    JobKind.VPG_SCRUB: Period(7 * _DAY, 2 * _MINUTE),
    JobKind.METER_USAGE: Period(_HOUR, _MINUTE),
    JobKind.RUN_DUE: Period(10 * _MINUTE, _MINUTE),
    JobKind.TIDY_RECORDS: Period(_DAY, _MINUTE),
}


def retry_seconds(failures: int) -> int:
    """How long after the last of so many failures in a row it is tried again."""
    return int(min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2 ** min(failures - 1, 20)))
