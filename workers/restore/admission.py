"""Whether somebody may restore: the ticket, who shows it, when, and what it opens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from host_agent.wire import restoring
from host_agent.wire.errors import WireError
from host_agent.wire.keys import GroupKey
from host_agent.wire.names import Identity
from host_agent.wire.ticket import (
    BadTicket,
    Ticket,
    check,
    is_receipt_of,
    open_group_key,
)


@dataclass(frozen=True)
class Believed:
    """What this process believes: its tenant, that tenant's authority, its own private keys."""

    tenant: str
    authority: x509.Certificate
    own_keys: Sequence[ec.EllipticCurvePrivateKey]


@dataclass(frozen=True)
class Admitted:
    """A right that was checked: to read this moment of this stream."""

    ticket: Ticket
    identity: Identity
    selector: str
    key: GroupKey


def admit(asked: restoring.Open, host: str, believed: Believed, now: float) -> Admitted:
    """The right behind an OPEN of this host; BadTicket, WireError, UnsealFailed."""
    if asked.version != restoring.VERSION:
        raise WireError(f"Version {asked.version} of the protocol is not known here.")
    ticket = check(asked.ticket, believed.authority.public_key())
    if ticket.tenant != believed.tenant:
        raise BadTicket("The ticket is of another tenant.")
    if ticket.host != host:
        raise BadTicket("The ticket is for another host.")
    if asked.stream not in ticket.streams:
        raise BadTicket("The ticket does not name this stream.")
    key = open_group_key(ticket, list(believed.own_keys))
    selector = ticket.at
    if asked.receipt is not None:
        if asked.receipt.stream != asked.stream or not is_receipt_of(asked.receipt, ticket, key):
            raise BadTicket("The receipt is not of this ticket.")
        selector = asked.receipt.selector
    _check_time(ticket, now, is_begun=asked.receipt is not None)
    return Admitted(ticket, Identity(ticket.tenant, ticket.vpg, asked.stream), selector, key)


def _check_time(ticket: Ticket, now: float, *, is_begun: bool) -> None:
    until = ticket.end_by if is_begun else ticket.begin_by
    if now > until:
        raise BadTicket(
            "The ticket's time is over.",
            hint="Ask for the restore anew; what is restored already is not sent again.",
        )
