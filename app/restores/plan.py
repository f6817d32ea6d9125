"""A ticket's times and shape. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from host_agent.wire.ticket import VERSION, DoorKey, Ticket

#: A ticket is begun soon or not at all; what was begun may take as long as a slow line needs.
BEGIN_WITHIN = timedelta(minutes=15)
END_WITHIN = timedelta(days=7)
#: Each adds a sealed key to the ticket.
NODES_MAX = 16


@dataclass(frozen=True)
class Moment:
    """What a ticket is for: a selector in the streams of a group's hosts."""

    tenant: str
    vpg: str
    streams: Sequence[str]
    at: str


def make_ticket(
    ticket_id: str, moment: Moment, host: str, keys: Sequence[DoorKey], now: datetime
) -> Ticket:
    """A ticket for this host, from now on."""
    return Ticket(
        version=VERSION,
        id=ticket_id,
        tenant=moment.tenant,
        vpg=moment.vpg,
        streams=list(moment.streams),
        at=moment.at,
        host=host,
        begin_by=int((now + BEGIN_WITHIN).timestamp()),
        end_by=int((now + END_WITHIN).timestamp()),
        keys=list(keys),
    )
