"""Bring a database to the newest schema, from nothing or from any older one."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, create_engine, text

from app.database.roles import create_roles

#: In the installed package the scripts lie beside this file, in the sources at the top.
_INSTALLED = Path(__file__).with_name("migrations")
_SCRIPTS = _INSTALLED if _INSTALLED.exists() else Path(__file__).resolve().parents[2] / "alembic"


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
    """Run the migrations up to `revision`, as `holdfast_migrate`."""
    command.upgrade(_config(url), revision)


def downgrade(url: URL, revision: str) -> None:
    """Undo migrations down to `revision`; `base` undoes all."""
    command.downgrade(_config(url), revision)


def _config(url: URL) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["url"] = url.render_as_string(hide_password=False)
    return config
