"""The ledger's truth: what each numbered transaction does, told without the database."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

MONEY = 100 * 1000
_COMMITTED = "committed "


def row(n: int) -> str:
    """What transaction n wrote, as the digest sees it."""
    note = hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest() * 8
    return f"{n}:{n % 100}:{(n * 7 + 1) % 100}:{n % 50}:{note}"


def digest(last: int) -> str:
    """The digest of the transactions 1 to `last`."""
    text = ",".join(row(n) for n in range(1, last + 1))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Acknowledged:
    """Which commits the database acknowledged, kept outside the protected disk."""

    last: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _others: list[str] = field(default_factory=list)

    def note(self, line: str) -> bool:
        """Take one line of the workload; False if it is not about a commit."""
        if not line.startswith(_COMMITTED):
            with self._lock:
                self._others = [*self._others[-19:], line]
            return False
        number = int(line[len(_COMMITTED) :])
        with self._lock:
            self.last = max(self.last, number)
        return True

    def wait_for(self, number: int, seconds: float) -> bool:
        """Wait until that transaction was acknowledged."""
        deadline = time.monotonic() + seconds
        while self.last < number:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def complaints(self) -> str:
        """What else the workload said last."""
        with self._lock:
            return "; ".join(self._others)


@dataclass(frozen=True)
class LedgerReport:
    """What a database says that its ledger holds."""

    count: int
    first: int
    last: int
    digest: str
    balances_wrong: int
    money: int
    version: str

    @classmethod
    def parse(cls, line: str) -> LedgerReport:
        """From the line that report.sql prints; ValueError."""
        content: dict[str, Any] = json.loads(line)
        return cls(**content)

    @property
    def is_prefix(self) -> bool:
        """Exactly the transactions 1 to `last`, each complete, and the balances that follow."""
        return (
            self.count == self.last
            and self.first == min(1, self.last)
            and self.digest == digest(self.last)
            and self.balances_wrong == 0
            and self.money == MONEY
        )
