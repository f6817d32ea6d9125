"""A simulator of the whole data path: real agent, ingest and journal code in one seeded loop.

`python -m tests.sim run --seeds 0:2000 --procs 2`, `python -m tests.sim replay SEED --trace`.
Hosts, network, disks and store are modelled, time is simulated, and a judge that knows only what
was done to the disks compares every restore with the truth. The same seed gives the same digest.
"""

from tests.sim.report import Report, Way, run_seeds

__all__ = ["Report", "Way", "run_seeds"]
