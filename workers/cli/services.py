"""The processes of the service, each told by its environment: `holdfast api` and the others."""

from __future__ import annotations

import typer


def api_command() -> None:
    """Serve the REST API. It is told by environment variables: see docker-compose.yml."""
    from app.http.process import ApiSettings, run_api
    from app.kit.settings import read_settings

    raise typer.Exit(run_api(read_settings(ApiSettings)))
