"""Cancel a coroutine at its k-th suspension, for every k: no await may leave anything behind.

    async for cancelled in everywhere(lambda: walk()):
        ...  # `walk` was cancelled there and is over; look what it left

Each suspension is tried twice: cancelled while it waits, and cancelled in the moment in which what it waits for is
there, before it has heard of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from functools import partial
from typing import Any

WAITING, SERVED = "waiting", "served"


class Stepped:
    """Runs a coroutine in the present task and cancels that at its suspension number ``at``, from 1."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, when: str) -> None:
        self._coroutine = coroutine
        self._at = at
        self._when = when
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        advance = partial(self._coroutine.send, None)
        steps = 0
        while True:
            try:
                future = advance()
            except StopIteration as stop:
                return stop.value
            steps += 1
            if steps == self._at:
                self.reached = True
                self._cancel(task, future)
            try:
                yield future
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the coroutine's
                advance = partial(self._coroutine.throw, error)
            else:
                advance = partial(self._coroutine.send, None)

    def _cancel(self, task: asyncio.Task[Any], future: asyncio.Future[Any] | None) -> None:
        if future is None or self._when == WAITING:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:  # Said to the future first, before the task itself says what it wants of it.
            future.add_done_callback(lambda _: task.cancel())


async def everywhere(
    make: Callable[[], Coroutine[Any, Any, Any]], *, whens: tuple[str, ...] = (WAITING, SERVED)
) -> AsyncIterator[str]:
    """Where it was cancelled, in words, after each time; ends when a run has no such suspension any more.

    ``make`` makes the coroutine anew. With SERVED, it must never wait for what doesn't come.
    """
    for when in whens:
        at = 1
        while True:
            stepped = Stepped(make(), at, when)
            task = asyncio.ensure_future(_run(stepped))
            await asyncio.gather(task, return_exceptions=True)
            if not stepped.reached:
                break
            yield f"{when} {at}"
            at += 1


async def _run(stepped: Stepped) -> Any:
    return await stepped
