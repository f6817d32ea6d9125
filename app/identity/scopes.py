"""Over what a privilege holds: the whole tenant, or some of its sites and groups. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from app.identity.privileges import OVER_PARTS, PRIVILEGES, Privilege, Role


@dataclass(frozen=True)
class Place:
    """Where something is: a group at its site, a site, or the tenant itself (neither)."""

    site_id: UUID | None = None
    vpg_id: UUID | None = None


@dataclass(frozen=True)
class Granted:
    """A role over a place."""

    role: Role
    place: Place = Place()

    @property
    def privileges(self) -> frozenset[Privilege]:
        """What it gives: over a part of the tenant nothing that is the tenant's own."""
        given = PRIVILEGES[self.role]
        return given if self.place == Place() else given & OVER_PARTS


@dataclass(frozen=True)
class Reach:
    """The places over which somebody has a privilege."""

    is_whole: bool = False
    sites: frozenset[UUID] = frozenset()
    vpgs: frozenset[UUID] = frozenset()

    def covers(self, place: Place) -> bool:
        """Whether what is at this place lies within."""
        return self.is_whole or place.site_id in self.sites or place.vpg_id in self.vpgs


WHOLE, NOTHING = Reach(is_whole=True), Reach()


def reaches_of(grants: Iterable[Granted]) -> dict[Privilege, Reach]:
    """How far each privilege of these grants reaches, taken together."""
    found: dict[Privilege, Reach] = {}
    for granted in grants:
        for privilege in granted.privileges:
            found[privilege] = _joined(found.get(privilege, NOTHING), granted.place)
    return found


def _joined(reach: Reach, place: Place) -> Reach:
    if reach.is_whole or place == Place():
        return WHOLE
    if place.vpg_id is not None:
        return Reach(sites=reach.sites, vpgs=reach.vpgs | {place.vpg_id})
    assert place.site_id is not None
    return Reach(sites=reach.sites | {place.site_id}, vpgs=reach.vpgs)
