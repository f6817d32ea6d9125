"""Where a tenant's data may be: the one place that says so. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from app.kit.problems import Problem


def may_hold(permitted: Sequence[str] | None, territory: str) -> bool:
    """Whether data that may be in `permitted` territories (None: anywhere) may be in this one."""
    return permitted is None or is_covered(permitted, territory)


def is_covered(permitted: Sequence[str], territory: str) -> bool:
    """A country covers its regions: CH covers CH-ZH, not the other way round."""
    return territory in permitted or territory.partition("-")[0] in permitted


def check_may_hold(permitted: Sequence[str] | None, territory: str, what: str) -> None:
    """Problem `jurisdiction` if the data may not be at `what`, which is in this territory."""
    if not may_hold(permitted, territory):
        raise Problem(
            "jurisdiction",
            f"The tenant's data may not come to {territory}, where {what} is.",
            hint="Choose a place in a territory that the tenant's policy permits.",
        )
