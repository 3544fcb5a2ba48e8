"""One engine with continuous batching, fast enough to simulate hours: where nothing changes, steps are one jump.

Its rules are those of `engines.simulated.model`, whose memory it shares: requests enter in order once their pages are
free, the prefill budget of a step goes to prompts first come first served, the step that ends a prompt writes its first
token, full pages are shared as soon as they are computed. What it adds are costs that real engines have: attention that
grows with what came before, and decode steps that grow with the memory they read.

    step = t0 + a x new tokens + b x attention + g x batch + d x context (+ p, where a prompt is read)

While no prompt is being read, a step differs from the one before only by the tokens just written, so any number of
steps is one sum. Somebody who arrives meanwhile waits for the end of the step under way, as he would step by step.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush

from benchmarks.simulate.gpu import Gpu
from engines.simulated.pages import Pages


class Job:
    """One request in an engine."""

    __slots__ = (
        "cached",
        "computed",
        "first_at",
        "id",
        "input",
        "output",
        "pages",
        "shared",
        "total",
    )

    def __init__(
        self, id_: int, input_tokens: int, output_tokens: int, pages: tuple[int, ...]
    ) -> None:
        self.id = id_
        self.input = input_tokens
        self.output = output_tokens
        self.pages = pages
        """Hashes of its prompt's full pages."""
        self.total = 0
        self.shared = 0
        self.computed = 0
        self.cached = 0
        self.first_at = math.inf


class Happened:
    """What a jump brought."""

    __slots__ = ("begun", "finished")

    def __init__(self) -> None:
        self.begun: list[Job] = []
        """Wrote their first token."""
        self.finished: list[Job] = []


class SimulatedEngine:
    """See the module. Whoever drives it calls ``advance`` when the clock shows ``next_at``."""

    def __init__(self, gpu: Gpu, page_tokens: int, speed: float = 1.0) -> None:
        """``speed`` multiplies everything it does."""
        self._costs = gpu.costs
        self._prompt_step_s = gpu.prompt_step_s
        self._chunk = gpu.chunk_tokens
        self._slots = gpu.slots
        self._page = page_tokens
        self._slowness = 1 / speed
        self._memory = Pages(gpu.kv_tokens // page_tokens)
        self._waiting: deque[Job] = deque()
        self._reading: deque[Job] = deque()
        self._ends: list[tuple[int, int, Job]] = []
        """Answers under way: (the count of steps at which they are whole, id, job)."""
        self._context = 0
        self._steps = 0
        self._since = 0.0
        self._jump = 0
        """Steps under way."""
        self._began: list[Job] = []
        """Those whose prompt ends with the step under way."""
        self.next_at = math.inf

    @property
    def running(self) -> int:
        """Requests that hold memory."""
        return len(self._reading) + len(self._ends) + len(self._began)

    @property
    def waiting(self) -> int:
        """Requests that wait for memory or a slot."""
        return len(self._waiting)

    def submit(self, job: Job, now: float) -> bool:
        """Queue a request; False where it could never fit."""
        job.total = -(-(job.input + job.output) // self._page)
        if job.total > self._memory.total:
            return False
        self._waiting.append(job)
        if self.next_at == math.inf:
            self._start(now)
        elif self._jump > 1 and len(self._waiting) == 1:
            self._shorten(now)
        return True

    def advance(self) -> Happened:
        """Do what was under way until ``next_at``, and begin what comes next."""
        now, happened = self.next_at, Happened()
        batch = len(self._ends)
        self._steps += self._jump
        self._context += self._jump * batch
        while self._ends and self._ends[0][0] <= self._steps:
            self._finish(heappop(self._ends)[2], happened)
        for job in self._began:
            job.first_at = now
            happened.begun.append(job)
            self._context += job.input + 1
            if job.output == 1:
                self._finish(job, happened)
            else:
                heappush(self._ends, (self._steps + job.output - 1, job.id, job))
        self._began = []
        self._start(now)
        return happened

    def _finish(self, job: Job, happened: Happened) -> None:
        self._context -= job.input + job.output
        self._memory.release(job.pages[: job.shared], job.total - job.shared)
        happened.finished.append(job)

    def _start(self, now: float) -> None:
        self._admit()
        self._since = now
        if self._reading:
            self._jump = 1
            self.next_at = now + self._read() + self._span(1)
        elif self._ends:
            self._jump = self._ends[0][0] - self._steps
            self.next_at = now + self._span(self._jump)
        else:
            self._jump = 0
            self.next_at = math.inf

    def _span(self, steps: int) -> float:
        """Seconds of so many steps, but for prompts."""
        costs, batch = self._costs, len(self._ends)
        first = costs.step_s + costs.request_s * batch + costs.context_s * self._context
        growth = costs.context_s * batch
        return (steps * first + growth * steps * (steps - 1) / 2) * self._slowness

    def _shorten(self, now: float) -> None:
        """Somebody came: the jump ends with the step under way, if he can enter then."""
        if self.running >= self._slots or not self._fits(self._waiting[0]):
            return
        low, high = 1, self._jump  # the first count of steps that ends at ``now`` or later
        while low < high:
            middle = (low + high) // 2
            if self._since + self._span(middle) < now:
                low = middle + 1
            else:
                high = middle
        self._jump = low
        self.next_at = self._since + self._span(low)

    def _sharable(self, job: Job) -> int:
        return min(len(job.pages), (job.input - 1) // self._page)

    def _fits(self, job: Job) -> bool:
        found = self._memory.longest(job.pages[: self._sharable(job)])
        return self._memory.in_use + job.total - found <= self._memory.total

    def _admit(self) -> None:
        while self._waiting and self.running < self._slots:
            job = self._waiting[0]
            found = self._memory.longest(job.pages[: self._sharable(job)])
            if not self._memory.reserve(job.pages[:found], job.total - found):
                return
            self._waiting.popleft()
            self._reading.append(job)
            job.shared = found
            job.computed = job.cached = found * self._page

    def _read(self) -> float:
        """Compute a step's share of the prompts; returns its seconds."""
        budget, seconds, costs = self._chunk, self._prompt_step_s, self._costs
        while budget and self._reading:
            job = self._reading[0]
            self._share_anew(job)
            chunk = min(budget, job.input - job.computed)
            seconds += costs.prefill_s(chunk, job.computed)
            budget -= chunk
            job.computed += chunk
            self._publish(job)
            if job.computed < job.input:
                break
            self._began.append(self._reading.popleft())
        return seconds * self._slowness

    def _share_anew(self, job: Job) -> None:
        """Take pages that others have computed since the request came in."""
        sharable = self._sharable(job)
        while (
            job.shared < sharable
            and job.computed == job.shared * self._page
            and self._memory.adopt(job.pages[job.shared])
        ):
            job.shared += 1
            job.computed += self._page
            job.cached += self._page

    def _publish(self, job: Job) -> None:
        full = min(len(job.pages), job.computed // self._page)
        while job.shared < full:
            self._memory.publish(job.pages[job.shared])
            job.shared += 1
