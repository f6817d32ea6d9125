"""Whether the database's schema is the one that this program was made for.

A program on another schema would fail in the middle of requests, each in its own way; so it does
not start, and one that runs while migrations pass by says that it is not ready.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.database.sessions import Database
from app.kit.settings import BadSettings

#: In the installed package the migrations lie beside this file, in the sources at the top.
_INSTALLED = Path(__file__).with_name("migrations")
SCRIPTS = _INSTALLED if _INSTALLED.exists() else Path(__file__).resolve().parents[2] / "alembic"


def newest_revision() -> str:
    """The revision that this program needs: the one that no other goes on from."""
    (newest,) = _named("revision") - _named("down_revision")
    return newest


def is_behind(found: str | None) -> bool:
    """Whether a database at this revision lacks something. One that this program does not know is
    of a newer program, which has just come beside it.
    """
    return found is None or found in _named("down_revision")


@cache
def _named(what: str) -> frozenset[str]:
    """Read from the migrations' texts: whoever only asks need not import what runs them."""
    texts = (file.read_text() for file in SCRIPTS.glob("versions/*.py"))
    found = (re.search(rf'^{what} = "(.+)"$', text, re.MULTILINE) for text in texts)
    return frozenset(one[1] for one in found if one)


async def revision_of(database: Database) -> str | None:
    """The revision that the database is at; None before its first. Problem."""
    try:
        async with database.system() as session:
            found = await session.orm.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:  # there is no such table, or nobody was given it yet
        return None
    return None if found is None else str(found)


async def check_schema(database: Database) -> None:
    """BadSettings for another schema; Problem `database_unavailable`."""
    found, wanted = await revision_of(database), newest_revision()
    if found != wanted:
        raise BadSettings(
            f"The database's schema is {found or 'none'}, this version needs {wanted}. "
            "Nothing was changed.",
            hint="Run `holdfast setup` of this version once, then start the processes again. "
            "If the schema is the newer one, start the version that made it.",
        )
