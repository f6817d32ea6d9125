"""Commands: how the rest of the control plane reaches the manager of a site.

A row is written in the caller's transaction and says what to do in ids alone. The manager polls;
whatever else it needs it reads in the tenant's own scope.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import and_, func, select, tuple_, update

from app.database.sessions import SystemSession, TenantSession
from app.dsm.assignments import NO_SITE, Place
from app.kit.ids import new_uuid
from app.models import Command, Host, ManagerAssignment
from app.models.base import key_of

_TAKEN_AT_ONCE_MAX = 200


class CommandKind(StrEnum):
    """What can be asked for. The subject is a host's id where nothing else is said."""

    ASSIGN = "assign"  #: the host's assignment changed
    DISCOVER = "discover"
    CHECKPOINT = "checkpoint"  #: subject: the group; the operation's input has `tag`
    PAUSE = "pause"  #: subject: the group
    RESUME = "resume"  #: subject: the group
    LIMIT = "limit"  #: subject: the group, whose settings changed
    FORCE_SYNC = "force_sync"  #: subject: the group; the operation's input has `disk`, `full`
    RESTORE = "restore"  #: the operation's input says what is restored where
    PLACE = "place"  #: of a provider's host; the operation's input says which tenant
    WITHDRAW = "withdraw"


class CommandState(StrEnum):
    """`sent` may be sent again by a successor: hosts do a repeated command once."""

    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Wanted:
    """A command as it is asked for. `host_id`: the manager of its site is meant."""

    kind: CommandKind
    host_id: UUID
    subject: UUID
    at: datetime
    operation_id: UUID | None = None


@dataclass(frozen=True)
class Waiting:
    """A command that is to be done."""

    place: Place
    id: UUID
    kind: CommandKind
    subject: UUID
    operation_id: UUID | None
    created_at: datetime


async def request_command(session: TenantSession, wanted: Wanted) -> UUID:
    """Ask the manager of the host's site, with the transaction. The command's id."""
    host = await session.orm.get_one(Host, key_of(session.tenant_id, wanted.host_id))
    command_id = new_uuid(wanted.at)
    session.orm.add(
        Command(
            tenant_id=session.tenant_id,
            id=command_id,
            site_id=host.site_id or NO_SITE,
            kind=wanted.kind,
            subject=wanted.subject,
            operation_id=wanted.operation_id,
            state=CommandState.QUEUED,
            created_at=wanted.at,
            done_at=None,
        )
    )
    return command_id


async def waiting_commands(
    session: SystemSession, process: UUID, in_hand: Collection[UUID]
) -> list[Waiting]:
    """What the places of this process are to do besides what it has in hand, the oldest first."""
    owner = and_(
        ManagerAssignment.tenant_id == Command.tenant_id,
        ManagerAssignment.site_id == Command.site_id,
        ManagerAssignment.process == process,
    )
    found = await session.orm.execute(
        select(
            Command.tenant_id,
            Command.site_id,
            Command.id,
            Command.kind,
            Command.subject,
            Command.operation_id,
            Command.created_at,
        )
        .join(ManagerAssignment, owner)
        .where(Command.done_at.is_(None), Command.id.not_in(in_hand))
        .order_by(Command.created_at, Command.id)
        .limit(_TAKEN_AT_ONCE_MAX)
    )
    return [
        Waiting(Place(row[0], row[1]), row[2], CommandKind(row[3]), row[4], row[5], row[6])
        for row in found
    ]


async def mark(session: SystemSession, commands: list[Waiting], state: CommandState) -> None:
    """They are sent, or at their end."""
    is_over = state in (CommandState.DONE, CommandState.FAILED)
    keys = [(command.place.tenant_id, command.id) for command in commands]
    await session.orm.execute(
        update(Command)
        .where(tuple_(Command.tenant_id, Command.id).in_(keys), Command.done_at.is_(None))
        .values(state=state, **({"done_at": func.clock_timestamp()} if is_over else {}))
    )
