"""Profiles: which service, believed by which root, with which token. A file of mode 0600."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from host_agent.wire.errors import HoldfastError

VARIABLE = "HOLDFAST_PROFILE"
_FOLDER_VARIABLE = "XDG_CONFIG_HOME"


class ProfileMissing(HoldfastError):
    """There is no such profile, or none at all."""

    code = "profile_missing"


@dataclass(frozen=True)
class Profile:
    """How to reach a service, and as whom."""

    name: str
    api: str
    root: str
    token: str = field(repr=False)


class Profiles:
    """The profiles of this user. Every change is written at once."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or _default_file()
        self._known: dict[str, Profile] = {}
        self.chosen: str | None = None
        if self.file.exists():
            self._load()

    def _load(self) -> None:
        try:
            document = json.loads(self.file.read_text())
            known = [Profile(**fields) for fields in document["profiles"]]
            self.chosen = document["chosen"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ProfileMissing(
                f"{self.file} is not a file of profiles.", hint="Remove it and add them anew."
            ) from None
        self._known = {profile.name: profile for profile in known}

    @property
    def all(self) -> list[Profile]:
        """By name."""
        return [self._known[name] for name in sorted(self._known)]

    def get(self, name: str | None = None) -> Profile:
        """The profile that is named, or that the environment names, or the chosen one."""
        wanted = name or os.environ.get(VARIABLE) or self.chosen
        if wanted is None:
            raise ProfileMissing(
                "No profile is chosen.", hint="Add one with `holdfast profile add`."
            )
        if wanted not in self._known:
            raise ProfileMissing(
                f"There is no profile named {wanted}.", hint="See `holdfast profile list`."
            )
        return self._known[wanted]

    def add(self, profile: Profile) -> None:
        """Keep a profile and choose it; one of the same name is replaced."""
        self._known[profile.name] = profile
        self.chosen = profile.name
        self._save()

    def choose(self, name: str) -> Profile:
        """Use this one from now on; ProfileMissing."""
        profile = self.get(name)
        self.chosen = name
        self._save()
        return profile

    def remove(self, name: str) -> None:
        """Forget a profile; ProfileMissing."""
        self.get(name)
        del self._known[name]
        self.chosen = None if self.chosen == name else self.chosen
        self._save()

    def _save(self) -> None:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.file.with_name(f"{self.file.name}.part")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        document = {"chosen": self.chosen, "profiles": [asdict(one) for one in self.all]}
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file, indent=2)
        part.replace(self.file)


def _default_file() -> Path:
    folder = os.environ.get(_FOLDER_VARIABLE)
    return (Path(folder) if folder else Path.home() / ".config") / "holdfast/profiles.json"
