"""Settings of processes with a database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.kit.settings import PREFIX, BadSettings, Settings


def _database(text: str) -> str:
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError("write it as postgresql://HOST/DATABASE") from None
    if url.get_backend_name() != "postgresql":
        raise ValueError("only PostgreSQL will do")
    return text


#: Where the database is. Each session adds its role; passwords come from PGPASSFILE.
DatabaseUrl = Annotated[str, AfterValidator(_database)]


class DatabaseSettings(Settings):
    """For processes with a database."""

    database_url: DatabaseUrl
    secret_file: Path = Field(description="32 bytes that seal and sign what the database holds.")

    @property
    def database(self) -> URL:
        """The address as SQLAlchemy takes it."""
        return make_url(self.database_url).set(drivername="postgresql+psycopg")

    @property
    def secret(self) -> bytes:
        """The deployment's secret; BadSettings."""
        try:
            return self.secret_file.read_bytes()
        except OSError as error:
            raise BadSettings(
                f"{PREFIX}SECRET_FILE: {self.secret_file} cannot be read: {error.strerror}."
            ) from None
