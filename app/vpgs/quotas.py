"""What a tenant's plan allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from app.kit.problems import Problem
from app.tenants.schemas import Plan


@dataclass(frozen=True)
class Usage:
    """What a tenant protects."""

    vpgs: int
    machines: int
    disks: int
    protected_bytes: int
    retained_bytes: int


def check_usage(plan: Plan, usage: Usage) -> None:
    """Problem `quota_exceeded` naming the first limit that this usage is over."""
    limits = {
        "groups": (usage.vpgs, plan.vpgs_max),
        "machines": (usage.machines, plan.machines_max),
        "disks": (usage.disks, plan.disks_max),
        "protected bytes": (usage.protected_bytes, plan.protected_bytes_max),
    }
    _check_retained(plan, usage.retained_bytes)
    for what, (wanted, allowed) in limits.items():
        if allowed is not None and wanted > allowed:
            raise Problem(
                "quota_exceeded",
                f"This would make {wanted} {what}; the tenant's plan allows {allowed}.",
                hint="Remove what is not needed, or ask the provider for a larger plan.",
            )


def _check_retained(plan: Plan, retained: int) -> None:
    most = plan.retained_bytes_max
    if most is not None and retained > most:
        raise Problem(
            "quota_exceeded",
            f"The journals take {retained} bytes in the store; the tenant's plan allows {most}.",
            hint="Shorten histories or limit journals, or ask the provider for a larger plan. "
            "What is protected stays protected.",
        )


def check_rpo(plan: Plan, rpo_seconds: int, checkpoint_seconds: int) -> None:
    """Problem `settings_refused` for an RPO that the plan does not allow, or that the checkpoints
    cannot keep.
    """
    if rpo_seconds < plan.rpo_seconds_min:
        raise Problem(
            "settings_refused",
            f"An RPO of {rpo_seconds} s is less than the {plan.rpo_seconds_min} s of the plan.",
            hint="Choose a longer RPO, or ask the provider for another plan.",
        )
    if checkpoint_seconds > rpo_seconds:
        raise Problem(
            "settings_refused",
            f"A checkpoint each {checkpoint_seconds} s cannot keep an RPO of {rpo_seconds} s.",
            hint="Take checkpoints at least as often as the RPO is long.",
        )
