"""A real resource manager in a thread of the test, which can so do what a person may."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rfaas.clock import SystemClock
from rfaas.config import ResourceManagerConfig
from rfaas.roles import resource_manager
from rfaas.roles.resource_manager import ResourceManager
from tests.harness.processes import PATIENCE_S
from tests.harness.site import Site


class Operator:
    """Does things in the manager's own thread."""

    def __init__(self, manager: ResourceManager, loop: asyncio.AbstractEventLoop) -> None:
        self.manager = manager
        self._loop = loop

    def do(self, work: Callable[[ResourceManager], object]) -> None:
        """Return when `work` is done with the manager."""

        async def there() -> None:
            work(self.manager)

        asyncio.run_coroutine_threadsafe(there(), self._loop).result(PATIENCE_S)


@contextmanager
def operated(site: Site) -> Iterator[Operator]:
    """A manager at the site's address, until the end of the block."""
    site.runtime.mkdir(mode=0o700, exist_ok=True)
    config = ResourceManagerConfig(
        address=site.address(), store=str(site.path / "store.sqlite"), heartbeat_s=0.1
    )
    made: list[ResourceManager] = []
    loops: list[asyncio.AbstractEventLoop] = []
    stops: list[asyncio.Event] = []
    ready = threading.Event()

    async def live() -> None:
        loops.append(asyncio.get_running_loop())
        stops.append(asyncio.Event())
        await resource_manager.run(
            config, SystemClock(), lambda _: ready.set(), stops[0], made=made.append
        )

    thread = threading.Thread(target=lambda: asyncio.run(live()), name="manager")
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), "the manager did not come up"
        yield Operator(made[0], loops[0])
    finally:
        loops[0].call_soon_threadsafe(stops[0].set)
        thread.join()
