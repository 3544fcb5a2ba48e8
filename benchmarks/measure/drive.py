"""Open and closed loops: requests go out when they are due, or when one before has ended; and how a stage ends.

A stage ends when its time or its requests are over and the last answers are in, when the server is saturated or the
objective out of reach (then what is under way is cut off), or when the user interrupts. The client watches itself
too: how late the event loop's timers are, and how much of a core it takes.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Protocol

import msgspec

from benchmarks.measure.client import Asking, Endpoint, Reading, Refused, Tally
from benchmarks.measure.prompts import Message, Writer
from benchmarks.measure.records import OK, UNFINISHED, Record
from benchmarks.measure.saturation import Saturation
from benchmarks.measure.sessions import Session

PROBE_S = 0.02
"""Between looks at the event loop's own lateness."""
SHOW_S = 0.2
LOOK_S = 1.0
"""Between looks for saturation."""
SHOWN_WORDS = 200
"""Of a server's words on a failure."""


class Stage(msgspec.Struct, kw_only=True):
    """What is done, before it is done."""

    name: str
    sessions: Iterable[Session]
    dues: Iterator[float] | None = None
    """When sessions begin, in seconds; None: as soon as one of ``workers`` is free."""
    workers: int = 0
    """Of a closed loop."""
    rate_at: Callable[[float], float] = lambda _: 0.0
    """The offered rate, for an open loop."""
    duration_s: float | None = None
    """No request begins after it."""
    requests: int | None = None
    """No more than this."""
    patience_s: float = 600.0
    """A request that takes longer has failed."""
    saturation: Saturation | None = None
    hopeless: Callable[[list[Record], float], bool] | None = None
    """Whether going on is in vain, given what was seen by a time."""


class Ran(msgspec.Struct, kw_only=True):
    """What was done."""

    records: list[Record]
    duration_s: float
    """Until the last request could begin."""
    ended: str
    """`done`, `saturated`, `hopeless` or `interrupted`."""
    note: str = ""
    lags_s: list[float]
    """How late the client's own timers were."""
    cpu_share: float
    """Of one core, taken by the client."""
    failures: dict[str, str] = {}
    """For each kind of failure, the words of the first."""


class Watcher(Protocol):
    """Whoever shows what is going on."""

    def __call__(self, drive: Drive, now_s: float) -> None:
        """Some time has passed."""


class Drive:
    """One stage under way."""

    def __init__(
        self, endpoint: Endpoint, asking: Asking, writer: Writer, stage: Stage, stop: asyncio.Event
    ) -> None:
        """``stop`` is set from outside to interrupt."""
        self.stage = stage
        self.records: list[Record] = []
        self.inflight = 0
        self.done = 0
        self.failed = 0
        self.tally = Tally()
        self._endpoint = endpoint
        self._asking = asking
        self._writer = writer
        self._stop = stop
        self._over = asyncio.Event()
        self._ended = "done"
        self._note = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = itertools.count()
        self._zero = 0.0
        self._lags: list[float] = []
        self._judged = 0
        """First tokens that the look for saturation has seen."""
        self._failures: dict[str, str] = {}
        self._crash: BaseException | None = None

    def now(self) -> float:
        """Seconds since the stage began."""
        return time.perf_counter() - self._zero

    async def run(self, watch: Watcher | None = None) -> Ran:
        """Do it, and say what happened. ``watch`` is called a few times a second."""
        self._zero = time.perf_counter()
        cpu = time.process_time()
        work = asyncio.create_task(self._open() if self.stage.dues is not None else self._closed())
        halted = asyncio.create_task(self._halt())
        drained = asyncio.create_task(self._drain(work))
        probe = asyncio.create_task(self._probe(watch))
        try:
            await asyncio.wait({work, halted}, return_when=asyncio.FIRST_COMPLETED)
            sending_s = self.now()
            await asyncio.wait({drained, halted}, return_when=asyncio.FIRST_COMPLETED)
            elapsed = max(self.now(), 1e-9)
        finally:
            every = (work, halted, drained, probe, *self._tasks)
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)
        if self._crash is not None:
            raise self._crash
        duration_s = min(sending_s, self.stage.duration_s or sending_s)
        return Ran(
            records=self.records, duration_s=duration_s, ended=self._ended, note=self._note, lags_s=self._lags,
            cpu_share=(time.process_time() - cpu) / elapsed, failures=self._failures,
        )  # fmt: skip

    async def _drain(self, work: asyncio.Task[None]) -> None:
        """Wait until all is sent and the last answer is in."""
        await asyncio.wait({work})
        self._note_crash(work)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _halt(self) -> None:
        """Return when the stage is to be broken off."""
        stopped = asyncio.create_task(self._stop.wait())
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({stopped, over}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() and not self._over.is_set():
                self._ended = "interrupted"
        finally:
            stopped.cancel()
            over.cancel()

    # Loops

    async def _open(self) -> None:
        stage = self.stage
        assert stage.dues is not None
        for due, session in zip(stage.dues, stage.sessions, strict=False):
            past = stage.duration_s is not None and due >= stage.duration_s
            if past or not self._more():
                # The gap behind the last request is part of the rate, too.
                await asyncio.sleep(min(due, stage.duration_s or due) - self.now())
                return
            opening = self._writer.opening(session)
            body = self._asking.body(opening, session.turns[0].output_tokens)
            wait_s = due - self.now()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._start(self._session(session, opening, body, self._record(session, due)))

    async def _closed(self) -> None:
        sessions = iter(self.stage.sessions)
        await asyncio.wait({self._start(self._worker(sessions)) for _ in range(self.stage.workers)})

    async def _worker(self, sessions: Iterator[Session]) -> None:
        duration_s = self.stage.duration_s
        for session in sessions:
            now = self.now()
            if (duration_s is not None and now >= duration_s) or not self._more():
                return
            opening = self._writer.opening(session)
            body = self._asking.body(opening, session.turns[0].output_tokens)
            await self._session(session, opening, body, self._record(session, self.now()))

    def _more(self) -> bool:
        return self.stage.requests is None or len(self.records) < self.stage.requests

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._note_crash)
        return task

    def _note_crash(self, task: asyncio.Task[None]) -> None:
        """A bug in here must not pass for a quiet server."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = error
            self._over.set()

    # A session

    def _record(self, session: Session, due: float, number: int = 0) -> Record:
        asked = self._writer.length(session, number)
        record = Record(next(self._ids), due, asked, session.turns[number].output_tokens, number)
        record.blocks = self._writer.blocks(session)
        record.input_tokens = asked
        self.records.append(record)
        return record

    async def _session(
        self, session: Session, said: list[Message], body: bytes, record: Record
    ) -> None:
        duration_s = self.stage.duration_s
        for number, turn in enumerate(session.turns[1:], 1):
            answer = await self._ask(body, record, keep_text=True)
            due = self.now() + turn.think_s
            past = duration_s is not None and due >= duration_s
            if answer is None or past or not self._more():
                return
            said = self._writer.reply(session, number, said, answer)
            body = self._asking.body(said, turn.output_tokens)
            await asyncio.sleep(max(0.0, due - self.now()))
            record = self._record(session, due, number)
        await self._ask(body, record, keep_text=False)

    async def _ask(self, body: bytes, record: Record, *, keep_text: bool) -> str | None:
        """The answer's text; None where it failed."""
        reading = Reading(record, self._zero, tally=self.tally, keep_text=keep_text)
        self.inflight += 1
        try:
            await self._endpoint.stream(body, reading, self.stage.patience_s)
        except Refused as refused:
            reading.conclude(refused.kind)
            self._failures.setdefault(refused.kind, str(refused)[:SHOWN_WORDS])
        except asyncio.CancelledError:
            reading.conclude(UNFINISHED)
            raise
        else:
            reading.conclude(OK)
            if record.outcome == OK:
                self.done += 1
                return reading.text
        finally:
            self.inflight -= 1
        self.failed += 1
        return None

    # Watching

    async def _probe(self, watch: Watcher | None) -> None:
        look_at, show_at = LOOK_S, 0.0
        while True:
            before = self.now()
            await asyncio.sleep(PROBE_S)
            now = self.now()
            self._lags.append(max(0.0, now - before - PROBE_S))
            if watch is not None and now >= show_at:
                show_at = now + SHOW_S
                watch(self, now)
            if now >= look_at:
                look_at = now + LOOK_S
                self._look(now)

    def _look(self, now: float) -> None:
        """Ask whether the stage should be broken off."""
        stage = self.stage
        if stage.saturation is not None:
            firsts = self.tally.firsts
            for at, ttft_s in firsts[self._judged :]:
                stage.saturation.first_token(at, ttft_s)
            self._judged = len(firsts)
            stage.saturation.in_server(now, self.inflight, stage.rate_at(now))
            if (sign := stage.saturation.sign(now)) is not None:
                self._break_off("saturated", str(sign))
        if stage.hopeless is not None and stage.hopeless(self.records, now):
            self._break_off("hopeless", f"the objective was out of reach after {now:.0f} s")

    def _break_off(self, ended: str, note: str) -> None:
        if not self._over.is_set():
            self._ended, self._note = ended, note
            self._over.set()
