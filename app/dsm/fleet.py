"""All managers of a process, and the hosts that are connected for them, here or by a relay."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from uuid import UUID

from app.dsm.assignments import Place, Route
from app.dsm.links import Link
from app.dsm.manager import Desk, Manager, Means
from host_agent.wire import control
from host_agent.wire.errors import WireError

#: A pass of the loop does no more than this at once.
_CHECKPOINTS_AT_ONCE = 20
_AT_ONCE = 50
_WAKE_SECONDS_MAX = 0.25
_WAKE_SECONDS_MIN = 0.02
_REVIEW_SECONDS = 1.0


class Fleet:
    """Who of this process manages which place. An Owner."""

    def __init__(self, means: Means) -> None:
        self.managers: dict[Place, Manager] = {}
        self._links: dict[Place, set[Link]] = defaultdict(set)
        self._means = means

    def adopt(self, route: Route, desk: Desk) -> None:
        """This process manages the place from now on, or with a new epoch."""
        self.resign(route.place)
        manager = Manager(route, self._means, desk)
        self.managers[route.place] = manager
        for link in list(self._links.get(route.place, ())):
            manager.joined(link)
        self._count()

    def resign(self, place: Place) -> None:
        """No longer."""
        manager = self.managers.pop(place, None)
        if manager is not None:
            manager.close()
            self._count()

    def joined(self, link: Link) -> None:
        self._links[link.peer.place].add(link)
        manager = self.managers.get(link.peer.place)
        if manager is not None:
            manager.joined(link)

    def left(self, link: Link) -> None:
        links = self._links[link.peer.place]
        links.discard(link)
        if not links:
            del self._links[link.peer.place]
        manager = self.managers.get(link.peer.place)
        if manager is not None:
            manager.left(link)

    def said(self, link: Link, text: str) -> None:
        manager = self.managers.get(link.peer.place)
        if manager is None:
            return
        try:
            message = control.decode_from_host(text)
        except WireError as error:
            self._means.metrics.malformed.inc()
            link.drop(error.message)
            return
        if message is not None:
            manager.said(link, message)

    def manager_of(self, place: Place) -> Manager | None:
        """Ours of this place."""
        return self.managers.get(place)

    def _count(self) -> None:
        self._means.metrics.managed.set(len(self.managers))

    async def run_checkpoints(self) -> None:
        """Ask for each group's checkpoints when they are due, until cancelled."""
        agenda = self._means.agenda
        while True:
            for place, host_id, vpg in agenda.due(self._means.now(), _CHECKPOINTS_AT_ONCE):
                manager = self.managers.get(place)
                if manager is not None:
                    manager.checkpoint(host_id, vpg)
            following = agenda.next_due()
            wait = _WAKE_SECONDS_MAX if following is None else following - self._means.now()
            await asyncio.sleep(min(_WAKE_SECONDS_MAX, max(_WAKE_SECONDS_MIN, wait)))

    async def run_reviews(self) -> None:
        """Notice hosts that fall silent, and rows that are due, until cancelled."""
        while True:
            for manager in list(self.managers.values()):
                for number, state in enumerate(list(manager.hosts.values()), 1):
                    manager.review(state)
                    if number % _AT_ONCE == 0:
                        await asyncio.sleep(0)
            await asyncio.sleep(_REVIEW_SECONDS)

    def forget_hosts(self, hosts: set[tuple[UUID, UUID]]) -> None:
        """They are shut out: nothing is asked of them any more."""
        for manager in self.managers.values():
            tenant_id = manager.place.tenant_id
            for host_id in [one for one in manager.hosts if (tenant_id, one) in hosts]:
                manager.forget(host_id)
