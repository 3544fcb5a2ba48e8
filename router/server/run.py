"""The whole process: a router, its listeners, metrics and log, from the first probe to the last answer.

start -> listeners open -> engines load -> ready -> SIGTERM or SIGINT -> drain -> exit 0
                                                       a second signal: end at once -> exit 1
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Self

from engines.base import EngineError
from router.app import Router
from router.config.schema import Config
from router.errors import NenyaError
from router.log import RequestLog
from router.metrics import Metrics
from router.server.serving import Serving

__all__ = ["FAILED", "OK", "OnReady", "Serving", "serve_until_stopped"]

_log = logging.getLogger(__name__)

OK = 0
FAILED = 1

YOUNG_OBJECTS = 5000
"""Made and not yet gone, when the garbage collector looks at them. Requests under way have some hundred each, none of
which it will find: Python's 700 has it look at every ninth request, for 3 % of a request's time.
"""

OnReady = Callable[[Serving], None]


async def serve_until_stopped(config: Config, *, on_ready: OnReady) -> int:
    """Serve until a signal says stop; returns the exit code.

    ``on_ready`` is called once, when every engine is ready. An engine that can't load, or an address that can't be
    had, ends with an error in the log and 1.
    """
    router = Router(config)
    metrics = Metrics(router.stats)
    router.listen(metrics)
    router.listen(RequestLog())
    serving = Serving(router, metrics.scrape)
    with Signals() as signals:
        try:
            await serving.start()
            metrics.loop_lag.start()
            _log.info("listening on %s, admin on %s", serving.url, serving.admin_url)
            await router.start()
            if await _before(signals.first, router.wait_ready()):
                gc.collect()
                gc.freeze()  # what stands now stands to the end: a full collection need not walk it
                gc.set_threshold(YOUNG_OBJECTS)
                on_ready(serving)
                await signals.first.wait()
            return await _drain(serving, config.server.drain_s, signals)
        except (NenyaError, EngineError) as error:
            _log.error("%s", error)
            return FAILED
        finally:
            metrics.loop_lag.stop()
            await serving.stop(0)
            await router.close()


async def _drain(serving: Serving, drain_s: float, signals: Signals) -> int:
    if await _before(signals.second, serving.stop(drain_s)):
        return OK
    await serving.cut()
    return FAILED


class Signals:
    """SIGTERM and SIGINT, the first and the second of them."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _before(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether ``work`` was done before ``event`` came; if not, it is cancelled. Raises what ``work`` raises."""
    done = asyncio.create_task(work)
    came = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({done, came}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            done.result()
            return True
        return False
    finally:
        for task in (done, came):
            task.cancel()
        await asyncio.gather(done, came, return_exceptions=True)
