"""Whether the API can work now, and which walls stand between tenants' journals."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import func, select

from app.database.schema import is_behind, newest_revision, revision_of
from app.database.sessions import Database
from app.http.schemas import HealthOutput, ReadyOutput
from app.kit.problems import Problem
from app.models import JournalStore

#: Anybody may ask, so the database is asked at most so often.
_KEPT_SECONDS = 1.0
_ANSWER_SECONDS_MAX = 2.0
_SHARED = (
    "A journal store gives all tenants one credential: nothing but our own code keeps their "
    "journals apart in it. Give each tenant its own."
)


class Readiness:
    """Asks the database, and keeps the answer for a moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._walls: dict[str, int] | None = None
        self._problem: Problem | None = None
        self._asked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def check(self) -> ReadyOutput:
        """Problem `database_unavailable` while requests cannot be answered."""
        await self._look()
        if self._problem is not None:
            raise Problem(self._problem.code, self._problem.message, hint=self._problem.hint)
        return ReadyOutput(ready=True)

    async def is_ready(self) -> bool:
        """The same as a word."""
        await self._look()
        return self._problem is None

    async def health(self) -> HealthOutput:
        """That the process lives, and what is known of the walls."""
        await self._look()
        warnings = [_SHARED] if (self._walls or {}).get("shared") else []
        return HealthOutput(status="up", store_walls=self._walls, warnings=warnings)

    async def _look(self) -> None:
        async with self._lock:
            if time.monotonic() - self._asked_at < _KEPT_SECONDS:
                return
            self._problem = None
            try:
                async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                    await self._ask()
            except TimeoutError:
                self._problem = Problem("database_unavailable")
            except Problem as problem:
                self._problem = problem
            self._asked_at = time.monotonic()

    async def _ask(self) -> None:
        found, wanted = await revision_of(self._database), newest_revision()
        if is_behind(found):
            raise Problem(
                "database_unavailable",
                f"The database's schema is {found or 'none'}, this version needs {wanted}.",
                hint="Whoever runs the service has to finish its upgrade.",
            )
        counted = select(JournalStore.wall, func.count()).group_by(JournalStore.wall)
        async with self._database.system() as session:
            rows = await session.orm.execute(counted)
            self._walls = {row[0]: row[1] for row in rows}
