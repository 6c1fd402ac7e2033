"""Group commit: what is decided while the disk is busy shares the next commit.

Decisions are made at once, in memory; whoever must not be told before they are kept waits
for `committed`.  One commit is under way at a time, in a thread, so that a slow disk delays
answers and nothing else; all who came meanwhile share the next.  A disk that flushes in 2 ms
so bears not 500 leases a second but as many as there are clients in each 2 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from rfaas.store.keeper import Keeper

Value = TypeVar("Value")


class Committer:
    """See the module's docstring.  Owns a thread; `close` it."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._thread = ThreadPoolExecutor(1, "rfaas-store")
        self._waiters: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._prune = False
        self.commits = 0

    async def committed(self) -> None:
        """Return when all that is marked now is saved.

        Raises:
            SystemCallError: it is not; it stays marked.
            RfaasError: nor will it be.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._start()
        await waiter

    def soon(self) -> None:
        """Save what is marked with the next commit; where that fails, with a later one."""
        self._start()

    def housekeep(self) -> None:
        """The same, and have old leases forgotten; for once a second."""
        self._prune = True
        self._start()

    async def read(self, look: Callable[[], Value]) -> Value:
        """What `look` finds in the store, when it is its turn; it raises what that does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, look)

    async def close(self) -> None:
        """Save what is marked, end the thread.  Can be called twice."""
        self._start()
        while self._task is not None:
            await asyncio.shield(self._task)
        self._thread.shutdown()

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)  # all that has been read by now is decided first
            while True:
                waiters, self._waiters = self._waiters, []
                batch = self._keeper.begin()
                error: Exception | None = None
                if batch is not None:
                    error = await self._in_thread(partial(self._keeper.write, batch))
                    self._keeper.finish(batch, error)
                    self.commits += 1
                for waiter in waiters:
                    if waiter.done():  # who waited was cancelled
                        continue
                    if error is None:
                        waiter.set_result(None)
                    else:
                        waiter.set_exception(error)
                if self._prune and error is None:
                    self._prune = False
                    await self._in_thread(self._keeper.prune)
                # What failed stays marked; the disk is asked again when somebody asks us.
                if not self._waiters and (error is not None or not self._keeper.marked):
                    return
        finally:
            self._task = None

    async def _in_thread(self, work: Callable[[], None]) -> Exception | None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Exception as error:  # noqa: BLE001 - whoever waits for the commit hears of it
            return error
        return None
