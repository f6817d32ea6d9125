"""What may be over a budget, by name and by how much. The lists may only shrink."""

from __future__ import annotations

# "path::function": lines
FUNCTION_LINES: dict[str, int] = {}

# "path": lines
FILE_LINES: dict[str, int] = {
    "host_agent/tap/src/group/core.rs": 600,
    "host_agent/tap/src/stream.rs": 620,
}

# "path::function": parameters
PARAMETERS: dict[str, int] = {}

# "path::function": lines
RUST_FUNCTION_LINES: dict[str, int] = {}
