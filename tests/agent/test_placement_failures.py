"""Why a placed tenant's process cannot start is told once to each manager of the owner's."""

from __future__ import annotations

from pathlib import Path

from host_agent.control import placements
from host_agent.control.placements import Placements
from host_agent.wire.control import PLACEMENT_FAILED
from host_agent.wire.errors import HoldfastError


def test_each_failure_is_told_once_to_each_manager(tmp_path: Path) -> None:
    told = Placements(tmp_path, lambda: None)
    assert list(told.failures(1, is_new_manager=True)) == []
    for name in ("ten_a", "ten_b"):
        placements.folder(tmp_path, name).mkdir(parents=True)
    error = HoldfastError("The token has run out.", hint="Place it again.")
    placements.note_failure(placements.folder(tmp_path, "ten_a"), error)
    (event,) = told.failures(2)
    assert (event.kind, event.subject, event.time_ns) == (PLACEMENT_FAILED, "ten_a", 2)
    assert event.data == {"code": error.code, "message": error.message, "hint": error.hint}
    # Tried again in vain, for the same reason: nothing new.
    placements.note_failure(placements.folder(tmp_path, "ten_a"), error)
    assert list(told.failures(3)) == []
    assert [one.subject for one in told.failures(4, is_new_manager=True)] == ["ten_a"]
    placements.note_failure(placements.folder(tmp_path, "ten_a"), HoldfastError("Another."))
    assert [one.data["message"] for one in told.failures(5)] == ["Another."]


def test_what_is_damaged_is_passed_over(tmp_path: Path) -> None:
    folder = placements.folder(tmp_path, "ten_a")
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text("{")
    assert list(Placements(tmp_path, lambda: None).failures(1)) == []
