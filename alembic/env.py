"""How migrations run: as `holdfast_migrate`, with short waits for locks."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from app.database.roles import MIGRATE, SYSTEM
from app.models import Base

_LOCK_MILLISECONDS_MAX = 3_000
_STATEMENT_MILLISECONDS_MAX = 60_000


def _run() -> None:
    url = context.config.attributes.get("url") or context.config.get_main_option("sqlalchemy.url")
    where = make_url(url).set(drivername="postgresql+psycopg", username=MIGRATE)
    engine = create_engine(where)
    try:
        with engine.connect() as connection:
            # Rather fail and be run again than hold up every tenant behind a queue for a lock.
            connection.execute(text(f"SET lock_timeout = {_LOCK_MILLISECONDS_MAX}"))
            connection.execute(text(f"SET statement_timeout = {_STATEMENT_MILLISECONDS_MAX}"))
            connection.commit()
            context.configure(connection=connection, target_metadata=Base.metadata)
            with context.begin_transaction():
                context.run_migrations()
                # Processes look whether the schema is theirs before they start.
                connection.execute(text(f"GRANT SELECT ON alembic_version TO {SYSTEM}"))
    finally:
        engine.dispose()


_run()
