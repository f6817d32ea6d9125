"""Sessions with a scope: the one way to the database.

A session belongs to a role, and a tenant's also to that tenant, from its first statement to its
end. Reading and writing are different types; committing happens here and nowhere else.
"""

from __future__ import annotations

import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import URL, AdaptedConnection, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from app.database.roles import APP, PROVIDER, SYSTEM, TENANT_SETTING
from app.kit.problems import Problem

_POOL_SIZE = 8
_POOL_OVERFLOW = 8
_POOL_WAIT_SECONDS = 5
_STATEMENT_MILLISECONDS_MAX = 10_000
_LOCK_MILLISECONDS_MAX = 3_000


@dataclass(frozen=True)
class TenantSession:
    """One transaction as `holdfast_app`, of one tenant."""

    tenant_id: UUID
    orm: AsyncSession

    async def commit(self) -> None:
        """End the transaction for good. For the edge of a request or a task, once."""
        await self.orm.commit()


@dataclass(frozen=True)
class ProviderSession:
    """One transaction as `holdfast_provider`."""

    orm: AsyncSession

    async def commit(self) -> None:
        """As TenantSession's."""
        await self.orm.commit()

    async def undo(self) -> None:
        """Undo what was not committed. The next statement begins another transaction."""
        await self.orm.rollback()


@dataclass(frozen=True)
class SystemSession:
    """One transaction as `holdfast_system`: ids, states and times of work, whoever's it is."""

    orm: AsyncSession

    async def commit(self) -> None:
        """As TenantSession's."""
        await self.orm.commit()


class Database:
    """An engine a role. Closed by `close`."""

    def __init__(self, url: URL) -> None:
        self._app = make_engine(url, APP)
        self._provider = make_engine(url, PROVIDER)
        self._system = make_engine(url, SYSTEM)

    async def close(self) -> None:
        """Give all connections back."""
        await self._app.dispose()
        await self._provider.dispose()
        await self._system.dispose()

    @asynccontextmanager
    async def tenant(self, tenant_id: UUID) -> AsyncIterator[TenantSession]:
        """A transaction in this tenant's scope; undone unless it was committed."""
        async with _session(self._app) as orm:
            await orm.execute(
                text("SELECT set_config(:name, :tenant, true)"),
                {"name": TENANT_SETTING, "tenant": str(tenant_id)},
            )
            yield TenantSession(tenant_id, orm)

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[ProviderSession]:
        """A transaction of the provider's staff; undone unless it was committed."""
        async with _session(self._provider) as orm:
            yield ProviderSession(orm)

    @asynccontextmanager
    async def system(self) -> AsyncIterator[SystemSession]:
        """A transaction over work of every tenant; undone unless it was committed."""
        async with _session(self._system) as orm:
            yield SystemSession(orm)


@asynccontextmanager
async def _session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as orm:
        try:
            yield orm
        except DBAPIError as error:
            if isinstance(error, OperationalError) or error.connection_invalidated:
                raise Problem("database_unavailable", hint="Try again in a moment.") from error
            raise
        except PoolTimeout:
            raise Problem(
                "database_unavailable",
                "Too many requests are at work at once.",
                hint="Try again in a moment.",
            ) from None


def make_engine(url: URL, role: str) -> AsyncEngine:
    """A pool of connections as this role."""
    options = (
        f"-c statement_timeout={_STATEMENT_MILLISECONDS_MAX} "
        f"-c lock_timeout={_LOCK_MILLISECONDS_MAX} "
        "-c idle_in_transaction_session_timeout=30000 -c timezone=UTC"
    )
    engine = create_async_engine(
        url.set(drivername="postgresql+psycopg", username=role),
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_OVERFLOW,
        pool_timeout=_POOL_WAIT_SECONDS,
        connect_args={"options": options, "prepare_threshold": 5},
    )
    event.listen(engine.sync_engine, "checkout", _refuse_dead)
    return engine


def _refuse_dead(connection: AdaptedConnection, *_: object) -> None:
    """InvalidatePoolError, by which the pool connects anew, where the server has hung up.

    Its end of the connection is closed then: to look costs nothing, while a query to find out would
    double what a small request costs.
    """
    ends = select.poll()
    ends.register(connection.driver_connection.fileno(), select.POLLRDHUP)
    if ends.poll(0):
        raise InvalidatePoolError
