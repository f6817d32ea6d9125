"""Puts the import package and the compiled tap into the wheel, so that hosts need no compiler.

The wheel runs on any CPython 3 of this machine's architecture: the binary does not link Python,
hence `py3-none-linux_<machine>`.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BINARY = "holdfast-tap"

# What of this folder is the import package `host_agent`.
PARTS = (
    "__init__.py",
    "agent.example.toml",
    "host.example.toml",
    "analyser",
    "control",
    "hypervisor",
    "py.typed",
    "recovery",
    "stream",
    "wire",
)


class TapBuildHook(BuildHookInterface[Any]):
    """Ships `holdfast-tap` as a script of the wheel, building it if it is not there yet."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the binary and the platform tag. Raises RuntimeError if it cannot be built."""
        if version == "editable":
            return  # `make tap` links the binary into the environment itself
        root = Path(self.root)
        build_data["force_include"] = {str(root / part): f"host_agent/{part}" for part in PARTS}
        binary = self._binary()
        build_data["shared_scripts"] = {str(binary): BINARY}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"

    def _binary(self) -> Path:
        given = os.environ.get("HOLDFAST_TAP_BINARY")
        if given:
            return self._existing(Path(given))
        tap = Path(self.root) / "tap"
        built = tap / "target" / "release" / BINARY
        if not built.exists():
            self._compile(tap)
        return self._existing(built)

    def _compile(self, tap: Path) -> None:
        cargo = shutil.which("cargo")
        if cargo is None:
            raise RuntimeError(
                "cargo is needed to build holdfast-tap; install Rust 1.85 or newer, or name a "
                "built binary in HOLDFAST_TAP_BINARY"
            )
        subprocess.run([cargo, "build", "--release", "--locked"], cwd=tap, check=True)

    def _existing(self, binary: Path) -> Path:
        if not binary.is_file() or not os.access(binary, os.X_OK):
            raise RuntimeError(f"{binary} is not an executable file; run `make tap` first")
        return binary.resolve()
