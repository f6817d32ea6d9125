"""`holdfast restore serve`: a guest waits for its first read, so the tap is started before anything
else is imported, and starts beside that."""

from __future__ import annotations

import sys

from workers.cli.imports import importing
from workers.cli.options import ServeOptions
from workers.cli.output import print_json, shown_progress
from workers.restore.tap_process import started_tap


def serve_command(options: ServeOptions) -> None:
    """Serve every disk of a moment over NBD at once; what guests write goes to a scratch layer."""
    with started_tap(options.socket_dir) as tap:
        with importing():
            from workers.cli.moments import opened
            from workers.restore import serve as serving

        with shown_progress() as progress, opened(options, progress) as (journal, point):
            wanted = serving.ServeOptions(
                fill=options.fill, cache=options.map_cache, progress=progress
            )
            with serving.serve(journal, point, tap, wanted) as served:
                if options.json:
                    print_json(served.as_dict())
                else:
                    for disk in served.disks:
                        sys.stdout.write(f"{disk.name}: {disk.uri}\n")
                    sys.stdout.flush()
                    sys.stderr.write("Serving until Ctrl-C.\n")
                served.wait(progress.say)
