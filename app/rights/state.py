"""States of a placement, and what moves them. Pure."""

from __future__ import annotations

from enum import StrEnum

from app.kit.transitions import Transitions


class PlacementState(StrEnum):
    """`placed`: the tenant's process has joined. `withdrawing`: it is shut out already, and the
    host has still to forget it.
    """

    REQUESTED = "requested"
    PLACED = "placed"
    FAILED = "failed"
    WITHDRAWING = "withdrawing"
    WITHDRAWN = "withdrawn"


class PlacementEvent(StrEnum):
    """What may happen to a placement."""

    REQUEST = "request"
    JOIN = "join"
    FAIL = "fail"
    WITHDRAW = "withdraw"
    FORGET = "forget"


_S, _E = PlacementState, PlacementEvent
PLACEMENT = Transitions(
    {
        (_S.REQUESTED, _E.REQUEST): _S.REQUESTED,
        (_S.REQUESTED, _E.JOIN): _S.PLACED,
        (_S.REQUESTED, _E.FAIL): _S.FAILED,
        (_S.REQUESTED, _E.WITHDRAW): _S.WITHDRAWING,
        (_S.FAILED, _E.REQUEST): _S.REQUESTED,
        (_S.FAILED, _E.JOIN): _S.PLACED,
        (_S.FAILED, _E.WITHDRAW): _S.WITHDRAWING,
        (_S.PLACED, _E.WITHDRAW): _S.WITHDRAWING,
        (_S.WITHDRAWING, _E.WITHDRAW): _S.WITHDRAWING,
        (_S.WITHDRAWING, _E.FORGET): _S.WITHDRAWN,
    }
)
