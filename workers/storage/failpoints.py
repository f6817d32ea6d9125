"""Failpoints, for those who import them from here."""

from host_agent.wire.failpoints import EXIT_STATUS, failpoint

__all__ = ["EXIT_STATUS", "failpoint"]
