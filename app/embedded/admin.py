"""`holdfast admin reset`: straight at the database, when nobody can log in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import URL

from app.database.sessions import Database
from app.database.settings import DatabaseSettings
from app.embedded.folder import Folder
from app.embedded.postgres import Postgres
from app.embedded.trust import FolderDamaged
from app.kit.clock import SystemClock
from app.kit.sealing import Sealer
from app.kit.settings import read_settings
from app.users.breakglass import BreakGlass, reset_break_glass


def run_reset(tenant: str, directory: Path | None) -> Mapping[str, str]:
    """The new administrator with the invitation; HoldfastError. `directory` is that of a running
    `holdfast up`; without one the process is told by its environment, as the API is.
    """
    if directory is None:
        settings = read_settings(DatabaseSettings)
        url, sealer = settings.database, Sealer(settings.secret)
    else:
        url, sealer = _of_folder(Folder(directory.resolve()))
    made = asyncio.run(_reset(url, sealer, tenant))
    return {
        "tenant_id": made.tenant_id,
        "user_id": made.user_id,
        "name": made.name,
        "invitation": made.invitation,
        "expires_at": made.expires_at.isoformat(),
    }


def _of_folder(folder: Folder) -> tuple[URL, Sealer]:
    if not folder.used.exists():
        raise FolderDamaged(
            f"{folder.path} is not the folder of a `holdfast up`.", hint="Name it with --directory."
        )
    return Postgres(folder.postgres).url(), Sealer(folder.secret.read_bytes())


async def _reset(url: URL, sealer: Sealer, tenant: str) -> BreakGlass:
    database = Database(url)
    try:
        return await reset_break_glass(database, sealer, SystemClock(), tenant)
    finally:
        await database.close()
