"""Waking a task at once, from a callback of the event loop, instead of with the loop's next turn."""

from __future__ import annotations

import asyncio


def wake_now(waiter: asyncio.Future[None]) -> None:
    """Give ``waiter`` its result and run on, within this call, whoever awaits it.

    A future calls back with the loop's next turn, which is a system call and a round of the loop's own work. Only for
    callbacks of transports, as their last step, for what is woken may do anything; within a task it is `set_result`.
    """
    awaiting = waiter._callbacks  # noqa: SLF001 - the one thing of a Future that has no other way to it
    if not awaiting or asyncio.current_task() is not None:
        waiter.set_result(None)
        return
    for callback, _ in awaiting:
        waiter.remove_done_callback(callback)
    waiter.set_result(None)
    for callback, context in awaiting:
        context.run(callback, waiter)
