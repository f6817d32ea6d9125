"""Bring a database to the newest schema, from nothing or from any older one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError

from app.database.roles import create_roles
from app.database.schema import SCRIPTS
from host_agent.wire.errors import HoldfastError


class UpgradeInterrupted(HoldfastError):
    """The schema could not be changed now. It is as it was: a change is whole or not at all."""

    code = "upgrade_interrupted"


def prepare_database(administrator: URL) -> None:
    """As a superuser: the roles. May be repeated."""
    database = administrator.database or ""
    engine = create_engine(
        administrator.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        for statement in create_roles(database):
            connection.execute(text(statement))
    engine.dispose()


def upgrade(url: URL, revision: str = "head") -> None:
    """Run the migrations up to `revision`, as `holdfast_migrate`; UpgradeInterrupted."""
    with _interruptible():
        command.upgrade(_config(url), revision)


def downgrade(url: URL, revision: str) -> None:
    """Undo migrations down to `revision`; `base` undoes all. UpgradeInterrupted."""
    with _interruptible():
        command.downgrade(_config(url), revision)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        why = str(error.orig).strip().split("\n")[0]
        raise UpgradeInterrupted(
            f"The database's schema was not changed: {why}.",
            hint="Its migrations wait 3 s for a lock and no longer, so that nobody waits behind "
            "them. Run it again when the database is less busy.",
            retryable=True,
        ) from None


def _config(url: URL) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["url"] = url.render_as_string(hide_password=False)
    return config
