"""Named places where a test ends the process as a power switch would, between two steps.

`HOLDFAST_FAILPOINT=NAME` ends the process by SIGKILL at the first arrival, `NAME:3` at the third.
Without the variable a failpoint costs one comparison. Names read
`<noun>_after_<done>_before_<next>`.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

#: What a process that ended at a failpoint ended with, as `subprocess` tells it.
EXIT_STATUS = -signal.SIGKILL

_name, _, _count = os.environ.get("HOLDFAST_FAILPOINT", "").partition(":")
_wanted = int(_count) if _count.isdecimal() else 1
_arrivals: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End the process here, without any clean-up, if the environment says so."""
    if not _name or name != _name:
        return
    _arrivals[name] += 1
    if _arrivals[name] >= _wanted:
        os.kill(os.getpid(), signal.SIGKILL)
