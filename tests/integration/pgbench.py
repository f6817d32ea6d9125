"""PostgreSQL's own pgbench as the load, and what it says of itself against what a disk holds.

Each client numbers its transactions; the number lies in pgbench's history table, written in the
transaction. pgbench's log of transactions, outside the protected disk, says when each commit had
been acknowledged to the client.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from infra.demo.machine import postgresql_wheel
from infra.demo.processes import Process, Processes, run

CLIENTS = 6
#: Transactions a second, over all clients: hours of them fit on the disk and in the journal.
RATE = 80
_KEY = 1_000_000_000
#: pgbench adds the clock's distance once, at its start; ours is asked for a moment before.
_CLOCK_NANOSECONDS = 20_000_000

_SCRIPT = f"""\
\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
\\set n :n + 1
\\set key :client_id * {_KEY} + :n
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler)
  VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP, :key);
END;
"""

_REPORT = f"""\
with each as (select filler::bigint / {_KEY} as client, filler::bigint % {_KEY} as n
              from pgbench_history),
     clients as (select client, count(*) as rows, count(distinct n) as numbers,
                        min(n) as first, max(n) as last from each group by client)
select json_build_object(
  'clients', (select coalesce(json_agg(c order by client), '[]') from clients c),
  'sums', json_build_array(
    (select coalesce(sum(delta), 0) from pgbench_history),
    (select sum(abalance) from pgbench_accounts),
    (select sum(tbalance) from pgbench_tellers),
    (select sum(bbalance) from pgbench_branches)))
"""


@dataclass(frozen=True)
class Found:
    """What a database holds: how many transactions of each client."""

    counts: tuple[int, ...]
    faults: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Found:
        """From the report's line; each client's must be exactly 1 to its newest."""
        content = json.loads(text)
        counts, faults = [0] * CLIENTS, []
        for one in content["clients"]:
            counts[one["client"]] = one["last"]
            if not one["rows"] == one["numbers"] == one["last"] or one["first"] != 1:
                faults.append(f"no prefix: {one}")
        if len(set(content["sums"])) != 1:
            faults.append(f"the sums differ: {content['sums']}")
        return cls(tuple(counts), tuple(faults))

    def complaints(self, least: tuple[int, ...], most: tuple[int, ...]) -> list[str]:
        """What is wrong with it for these bounds."""
        wrong = [
            f"client {client}: {count} transactions, at least {low} and at most {high} must be"
            for client, (count, low, high) in enumerate(zip(self.counts, least, most, strict=True))
            if not low <= count <= high
        ]
        return [*self.faults, *wrong]


def sql(run_folder: Path, text: str, seconds: float = 300) -> str:
    """What the database answers; DemoFailed."""
    psql = postgresql_wheel() / "pginstall/bin/psql"
    words = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", run_folder, "-U", "ledger")
    return run([psql, *words, "-d", "postgres", "-c", text], seconds=seconds).stdout.strip()


def found_in(run_folder: Path) -> Found:
    """What the database behind this socket holds."""
    return Found.parse(sql(run_folder, _REPORT))


class Load:
    """pgbench against a machine's database for so many seconds."""

    def __init__(self, processes: Processes, folder: Path, run_folder: Path) -> None:
        folder.mkdir()
        self._processes, self._folder = processes, folder
        self._pgbench = postgresql_wheel() / "pginstall/bin/pgbench"
        self._where = ("-h", run_folder, "-U", "ledger")
        self._process: Process | None = None
        self._distance = 0
        #: For each client when its transactions were acknowledged, monotonic nanoseconds.
        self.times: list[list[int]] = [[] for _ in range(CLIENTS)]
        self._read = 0

    def prepare(self) -> None:
        """pgbench's own tables."""
        run([self._pgbench, *self._where, "-i", "-q", "-s", "1", "postgres"], seconds=300)

    def start(self, seconds: int) -> None:
        """Begin."""
        script = self._folder / "script.sql"
        script.write_text(_SCRIPT)
        self._distance = time.time_ns() - time.monotonic_ns()
        words = ("-n", "-s", "1", "-c", str(CLIENTS), "-j", "1", "-T", str(seconds), "-D", "n=0")
        log = ("-l", f"--log-prefix={self._folder}/log", "--random-seed=23", f"--rate={RATE}")
        argv: list[str | Path] = [
            self._pgbench,
            *self._where,
            *words,
            *log,
            "-f",
            script,
            "postgres",
        ]
        self._process = self._processes.start("pgbench", argv)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def finish(self, seconds: float) -> None:
        """Wait for its orderly end, with no transaction failed."""
        assert self._process is not None
        code = self._process.popen.wait(seconds)
        said = self._process.tail()
        assert code == 0, said
        assert "number of failed transactions: 0 " in said, said
        self.refresh()

    def refresh(self) -> int:
        """Read what the log has got; when its newest line's commit was acknowledged."""
        paths = sorted(self._folder.glob("log.*"))
        if not paths:
            return 0
        with paths[0].open("rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            client, _, _, _, second, micro = line.split()[:6]
            at = (int(second) * 1_000_000 + int(micro)) * 1000 - self._distance
            self.times[int(client)].append(at)
        return max((times[-1] for times in self.times if times), default=0)

    def wait_past(self, moment: int, seconds: float) -> None:
        """Until everything that was acknowledged before that moment is known."""
        end = time.monotonic() + seconds
        while self.refresh() < moment + 2 * _CLOCK_NANOSECONDS and self.is_running:
            assert time.monotonic() < end, "pgbench says nothing more"
            time.sleep(0.2)
        self.refresh()

    def bounds(self, asked: int, answered: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many transactions of each client a checkpoint has at least and at most."""
        least = (bisect_left(times, asked - _CLOCK_NANOSECONDS) for times in self.times)
        most = (bisect_left(times, answered + _CLOCK_NANOSECONDS) + 1 for times in self.times)
        return tuple(least), tuple(most)

    def longest_silence(self) -> float:
        """Seconds between two commits that followed one another, at most."""
        times = sorted(at for client in self.times for at in client)
        return max((b - a for a, b in pairwise(times)), default=0) / 1e9
