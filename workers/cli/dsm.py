"""`holdfast dsm`: the data services managers' process."""

from __future__ import annotations

import typer


def dsm_command() -> None:
    """Manage hosts: their control door, checkpoints, health. Told by HOLDFAST_ variables."""
    from app.dsm.process import DsmSettings, run_dsm
    from app.kit.settings import read_settings

    raise typer.Exit(run_dsm(read_settings(DsmSettings)))
