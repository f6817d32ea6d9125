"""`holdfast restore export`."""

from __future__ import annotations

import ctypes
import sys

from host_agent.wire.limits import MIB
from workers.cli.moments import opened
from workers.cli.options import ExportOptions
from workers.cli.output import print_json, shown_progress, size_text
from workers.journal.errors import JournalMoved
from workers.restore import export
from workers.restore.progress import Progress

#: How often an export whose objects were collected meanwhile is planned anew.
_PLANS_MAX = 3

#: glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (bytes: beyond any buffer of a frame), M_ARENA_MAX.
_MALLOC = {-1: 256 * MIB, -3: 32 * MIB, -8: 2}


def _keep_freed_memory() -> None:
    """Let what is freed stay with this process: frames come and go by megabytes, and a page that
    is had anew from the system costs about what its bytes cost."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        for parameter, value in _MALLOC.items():
            tune(parameter, value)


def _export(options: ExportOptions, progress: Progress) -> tuple[export.Exported, str]:
    with opened(options, progress) as (journal, point):
        # The same moment, should it have to be planned again.
        options.at = f"seq:{point.generation_name}/{point.seq}"
        wanted = export.ExportOptions(
            options.output,
            force=options.force,
            cache=options.map_cache,
            digest=options.digest,
            progress=progress,
        )
        done = export.export(journal, point, wanted)
        return done, f"{journal.identity.group}/{journal.identity.host}"


def export_command(options: ExportOptions) -> None:
    """Write every disk of a moment as a raw image, verified by reading it back."""
    _keep_freed_memory()
    with shown_progress() as progress:
        for left in reversed(range(_PLANS_MAX)):
            try:
                done, stream = _export(options, progress)
                break
            except JournalMoved:
                if not left:
                    raise
                progress.say("What was read was collected meanwhile: planning again.")
    if options.json:
        print_json(done.as_dict(stream))
        return
    for disk in done.disks:
        digest = f", blake3:{disk.digest}" if disk.digest else ""
        sys.stdout.write(f"{disk.path}: {size_text(disk.size)}, verified{digest}\n")
