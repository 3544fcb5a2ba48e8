"""The sooner of two attempts: the second is sent when the first has kept silent for unusually long.

Whichever has its first piece first wins; the other is cancelled, which settles it and closes its connection.

Source: J. Dean and L. A. Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from router.clock import Clock
from router.dispatch.walk import Attempt
from router.policy.breaker import Verdict

Sending = Coroutine[Any, Any, Attempt]


async def sooner(
    first: Sending, second: Callable[[], Sending | None], *, patience_s: float, clock: Clock
) -> Attempt:
    """The attempt that has its first piece first. ``second`` is called after ``patience_s`` and may decline.

    Raises the first one's Fault if both fail. Cancelling it cancels both.
    """
    leader = asyncio.ensure_future(first)
    tasks = [leader]
    timer = asyncio.ensure_future(clock.sleep(patience_s))
    winner: asyncio.Future[Attempt] | None = None
    try:
        await asyncio.wait({leader, timer}, return_when=asyncio.FIRST_COMPLETED)
        sending = None if leader.done() else second()
        if sending is None:
            await asyncio.wait({leader})
        else:
            tasks.append(asyncio.ensure_future(sending))
            await _until_one_answers(tasks)
        winner = next((task for task in tasks if _answered(task)), leader)
        return winner.result()
    finally:
        timer.cancel()
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(timer, *tasks, return_exceptions=True)
        except asyncio.CancelledError:
            winner = None  # Nobody is left to take it.
            raise
        finally:
            for task in tasks:
                if task is not winner and _answered(task):
                    task.result().waste(None, Verdict.VOID, clock.now())


async def _until_one_answers(tasks: Sequence[asyncio.Future[Attempt]]) -> None:
    pending = set(tasks)
    while pending and not any(map(_answered, tasks)):
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)


def _answered(task: asyncio.Future[Attempt]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
