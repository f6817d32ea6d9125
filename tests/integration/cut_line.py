"""A TCP line between a site's agent and its ingest that can be cut as networks are."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.agent.proxy import Proxy
from tests.integration.place import Place


class Line:
    """Passes bytes in a thread of its own."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy, self._loop = proxy, loop

    def _set(self, *, is_down: bool, is_stalled: bool) -> None:
        def change() -> None:
            self._proxy.weather.is_down = is_down
            self._proxy.weather.is_stalled = is_stalled
            if is_down:
                self._proxy.reset_all()

        self._loop.call_soon_threadsafe(change)

    def cut(self) -> None:
        """Reset what there is and refuse what comes."""
        self._set(is_down=True, is_stalled=False)

    def stall(self) -> None:
        """Pass nothing and say nothing."""
        self._set(is_down=False, is_stalled=True)

    def heal(self) -> None:
        """A line again."""
        self._set(is_down=False, is_stalled=False)


@contextlib.contextmanager
def line_between(place: Place) -> Iterator[Line]:
    """Put one before the agent of this place starts."""
    port, loop = place.site.setup.port, asyncio.new_event_loop()
    proxy = Proxy(port)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
        config = place.site.setup.path("agent.toml")
        text = config.read_text()
        assert text.count(f":{port}") == 1
        config.write_text(text.replace(f":{port}", f":{proxy.port}"))
        yield Line(proxy, loop)
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
