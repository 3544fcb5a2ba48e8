"""The one thread that talks to the database, so that no disk ever holds the event loop.

Whenever a batch is full, every half second, and when it stops, it writes down what ended since; every half second it
looks whether somebody else (the command line, another server) changed the file. So a kill -9 costs the records of half
a second at most, and a revoked key is refused within it. Where the file can't be written, requests are served all the
same: records wait, as many as there is room for, and what doesn't fit is counted as dropped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from router.accounts.secrets import StoredKey
from router.accounts.store import Entry, Store, StoreError

TICK_S = 0.5
"""Changes are to be seen within a second."""
BATCH = 128
"""Entries of a transaction: half a millisecond. All of half a second in one took 20, and of these the thread held the
interpreter's lock, or the core that it has with the loop, for 5 at a time."""
MOST_BACKLOG = 50_000
"""Entries that wait for a database that is out of reach: minutes of a busy server, about 50 MiB."""

_log = logging.getLogger("nenya.accounts")


class Snapshot(msgspec.Struct, frozen=True):
    """What the database says."""

    keys: Mapping[str, StoredKey]
    spent_by_others: Mapping[str, int]
    """By key, in billionths of a dollar: without what this process booked."""


class Bookkeeper:
    """A thread and its queue; ``start``, ``book`` and ``stop`` belong to the event loop."""

    def __init__(
        self,
        path: str,
        pepper: bytes,
        *,
        usage: bool,
        on_change: Callable[[Snapshot], None],
        tick_s: float = TICK_S,
    ) -> None:
        """``on_change`` is called in the loop with everything, after a change and once at the start."""
        self._path = path
        self._pepper = pepper
        self._usage = usage
        self._on_change = on_change
        self._tick_s = tick_s
        self._queue: deque[Entry] = deque()
        self._batch: list[Entry] = []
        self._woken = threading.Event()
        """There is a batch to write, or it is the end."""
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The thread's own:
        self._booked: dict[str, int] = {}
        self._seen: tuple[int, int] = (-1, -1)
        self._keys: Mapping[str, StoredKey] = {}
        self._trouble = ""

    async def start(self) -> None:
        """Open the database and read it. Raises StoreError."""
        self._loop = asyncio.get_running_loop()
        opened: concurrent.futures.Future[Snapshot] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name="nenya-accounts", daemon=True
        )
        self._thread.start()
        self._on_change(await asyncio.wrap_future(opened))

    async def stop(self) -> None:
        """Write what is left and end the thread. May be called twice, or without a start."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping = True
        self._woken.set()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        if lost := self.waiting:
            _log.error("%d records of usage were never written: %s", lost, self._trouble)

    def book(self, entry: Entry) -> bool:
        """Have ``entry`` written down soon; False where there is no room and it is dropped."""
        ahead = len(self._queue)
        if ahead + len(self._batch) >= MOST_BACKLOG:
            return False
        self._queue.append(entry)
        if ahead == BATCH - 1 and not self._trouble:
            self._woken.set()
        return True

    @property
    def waiting(self) -> int:
        """Entries that aren't written yet."""
        return len(self._queue) + len(self._batch)

    # In the thread.

    def _run(self, opened: concurrent.futures.Future[Snapshot]) -> None:
        try:
            store = Store(self._path)
        except StoreError as error:
            opened.set_exception(error)
            return
        with store:
            try:
                store.check_pepper(self._pepper)
                first = self._changed(store)
            except StoreError as error:
                opened.set_exception(error)
                return
            opened.set_result(first or Snapshot({}, {}))
            look_at = time.monotonic() + self._tick_s
            while not self._stopping:
                woken = self._woken.wait(max(0.0, look_at - time.monotonic()))
                self._woken.clear()
                if time.monotonic() >= look_at:
                    self._tick(store)
                    look_at = time.monotonic() + self._tick_s
                elif woken:
                    self._write_full(store)
            self._tick(store)

    def _write_full(self, store: Store) -> None:
        """Write what is full."""
        try:
            self._write_batches(store)
        except StoreError as error:
            self._note_trouble(error)

    def _tick(self, store: Store) -> None:
        """Write all that waits, and look whether somebody else changed the file."""
        try:
            self._write_batches(store)
            if self._queue:
                self._write_batch(store)
            snapshot = self._changed(store)
        except StoreError as error:
            self._note_trouble(error)
            return
        if self._trouble:
            _log.warning("the accounts' database can be used again")
            self._trouble = ""
        if snapshot is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody wants to know
                self._loop.call_soon_threadsafe(self._on_change, snapshot)

    def _note_trouble(self, error: StoreError) -> None:
        if not self._trouble:
            _log.error("the accounts' database can't be used, requests go on: %s", error)
        self._trouble = str(error)

    def _write_batches(self, store: Store) -> None:
        """Write all batches that are full, first the one that failed the last time. Raises StoreError."""
        while self._batch or len(self._queue) >= BATCH:
            self._write_batch(store)

    def _write_batch(self, store: Store) -> None:
        """Write the entries of one transaction; what fails waits in the batch for the next time. Raises StoreError."""
        queue = self._queue
        if not self._batch:
            self._batch = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
        for key_id, nanos in store.book(self._batch, usage=self._usage).items():
            self._booked[key_id] = self._booked.get(key_id, 0) + nanos
        self._batch = []

    def _changed(self, store: Store) -> Snapshot | None:
        """What the database says if somebody else changed it. Raises StoreError."""
        version = store.data_version()
        if version == self._seen[0]:
            return None
        generation = store.generation()
        if generation != self._seen[1]:
            self._keys = store.keys()
        spent = store.spent()
        self._seen = (version, generation)
        others = {key: nanos - self._booked.get(key, 0) for key, nanos in spent.items()}
        return Snapshot(self._keys, others)
