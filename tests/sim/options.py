"""What a schedule is: drawn from its seed, written down whole, and cut smaller where one fails."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: Faults of hosts and of what runs on them, with how often each is drawn.
_HOST_FAULTS = {
    "agent_kill": 5,
    "agent_stop": 4,
    "tap_kill": 2,
    "tap_restart": 2,
    "power_loss": 2,
    "host_clock_ahead": 1,
    "host_clock_back": 1,
    "host_clock_frozen": 1,
    "disk_fails": 1,
    "disk_slow": 1,
    "burst": 4,
    "clone_live": 2,
    "clone_backup": 1,
    "pause": 1,
    "limit": 1,
    "resync": 1,
    "unplugged": 1,
}
_NET_FAULTS = {
    "partition": 4,
    "cut_up": 2,
    "cut_down": 2,
    "loss": 2,
    "delay": 2,
    "narrow": 2,
    "resets": 4,
    "clog": 2,
}
_CLOUD_FAULTS = {
    "ingest_kill": 5,
    "ingest_stop": 4,
    "ingest_restart": 2,
    "ingest_clock_ahead": 1,
    "ingest_clock_back": 1,
    "ingest_clock_frozen": 1,
    "store_cut": 2,
}
_STORE_FAULTS = {
    "store_away": 3,
    "store_busy": 2,
    "store_slow": 2,
    "store_lost_answer": 4,
    "store_late": 3,
    "store_full": 1,
    "store_storm": 2,
    "store_stale": 2,
    "store_corrupt": 2,
}
FAULTS = {**_HOST_FAULTS, **_NET_FAULTS, **_CLOUD_FAULTS, **_STORE_FAULTS}


@dataclass(frozen=True)
class Fault:
    """`at` and `seconds` of simulated time; `target` picks a host, an ingest or a line."""

    kind: str
    at: float
    seconds: float
    target: int
    strength: float


@dataclass(frozen=True)
class Options:
    """Everything that a schedule is. Same options, same run."""

    seed: int
    hosts: int = 1
    tenants: int = 1
    ingests: int = 1
    disks: int = 1
    disk_kib: int = 64
    ring_kib: int = 96
    commit_seconds: float = 1.0
    rate: float | None = None
    checkpoint_seconds: float = 4.0
    read_seconds: float = 0.02
    seconds: float = 40.0
    writes: int = 120
    readings: int = 1
    spool_kib: int = 0
    corruptions: int = 0
    indexes: bool = False
    folds: bool = False
    faults: tuple[Fault, ...] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Options:
        """From a file."""
        faults = tuple(Fault(**one) for one in data.pop("faults", ()))
        return cls(**data, faults=faults)


def draw(seed: int) -> Options:
    """The options of a seed."""
    rng = random.Random(f"options/{seed}")
    hosts = rng.choices((1, 2, 3), (70, 22, 8))[0]
    tenants = 2 if hosts > 1 and rng.random() < 0.5 else 1
    options = Options(
        seed,
        hosts=hosts,
        tenants=tenants,
        ingests=rng.choices((1, 2), (55, 45))[0],
        disks=rng.choices((1, 2), (75, 25))[0],
        disk_kib=rng.choice((64, 64, 96, 128)),
        ring_kib=rng.choice((96, 128, 256)),
        commit_seconds=rng.choice((0.25, 1.0, 1.0, 3.0)),
        rate=rng.choice((None, None, None, 60_000.0)),
        checkpoint_seconds=rng.choice((1.5, 4.0)),
        read_seconds=rng.choice((0.02, 0.3)),
        seconds=rng.uniform(20.0, 45.0),
        writes=rng.randrange(40, 140) // hosts,
        readings=rng.choices((0, 1), (70, 30))[0],
        spool_kib=rng.choice((0, 0, 256, 512)),
        corruptions=rng.choices((0, 1, 3), (65, 20, 15))[0],
        indexes=rng.random() < 0.25,
        folds=rng.random() < 0.25,
    )
    return replace(options, faults=_draw_faults(rng, options.seconds))


def _draw_faults(rng: random.Random, seconds: float) -> tuple[Fault, ...]:
    """One or two groups of two to four faults that overlap, and now and then none at all."""
    if rng.random() < 0.03:
        return ()
    found: list[Fault] = []
    kinds, weights = list(FAULTS), list(FAULTS.values())
    while len(found) < 5:
        start = rng.uniform(1.0, seconds * 0.8)
        for kind in rng.choices(kinds, weights, k=rng.randrange(2, 5)):
            at = max(0.5, start + rng.uniform(-2.0, 4.0))
            length = rng.choice((0.3, 2.0, 6.0, 15.0, 25.0, 60.0))
            found.append(
                Fault(
                    kind,
                    round(at, 3),
                    round(length * rng.uniform(0.5, 1.0), 3),
                    rng.randrange(64),
                    round(rng.random(), 3),
                )
            )
    return tuple(sorted(found, key=lambda fault: (fault.at, fault.kind)))


def shrunk(options: Options) -> list[Options]:
    """Smaller ones to try, the boldest first."""
    found = []
    count = len(options.faults)
    if count > 1:
        found.append(replace(options, faults=options.faults[: count // 2]))
        found.append(replace(options, faults=options.faults[count // 2 :]))
    for index in range(count):
        rest = options.faults[:index] + options.faults[index + 1 :]
        found.append(replace(options, faults=rest))
    if options.writes > 2:
        found.append(replace(options, writes=options.writes // 2))
    if options.hosts > 1:
        found.append(replace(options, hosts=options.hosts - 1, tenants=1))
    if options.readings:
        found.append(replace(options, readings=0))
    if options.corruptions:
        found.append(replace(options, corruptions=0))
    if options.indexes:
        found.append(replace(options, indexes=False))
    if options.spool_kib:
        found.append(replace(options, spool_kib=0))
    if options.folds:
        found.append(replace(options, folds=False))
    if options.ingests > 1:
        found.append(replace(options, ingests=1))
    if options.disks > 1:
        found.append(replace(options, disks=1))
    return found
