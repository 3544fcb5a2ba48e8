"""The steps and the memory of an engine with continuous batching, without a clock.

A step is what every such engine does over and over: let in waiting requests whose memory is free,
compute a chunk of the prompts that aren't done, write one token of every answer. The model says
what a step did and how long it took; whoever drives it decides what a second is, so the same object
serves a simulator with a virtual clock and an engine in real time. Drivers apply a step's result
when its duration has passed, and may submit and cancel meanwhile.

What it takes from real engines:

- A request reserves pages for its prompt and its longest answer when it enters, and waits until
  they are free. Requests enter in order; nobody overtakes.
- The prefill budget of a step is shared, first come first served. The step that ends a prompt
  writes its first token.
- Full pages of a prompt are shared by hash, with those still running too, from the step in which
  they were computed. Unused ones stay until memory is needed, the least recently used first. The
  last token of a prompt is always computed.

What it leaves out: answers are not put into the prefix cache, a page is never moved out of memory,
attention costs the same at any length, and a token costs the same whatever samples it.

Source: W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention", SOSP 2023; A. Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference
with Sarathi-Serve", OSDI 2024.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable

from msgspec import Struct

from engines.simulated.pages import Pages
from engines.specs import SimulatedSpec

PAGE_TOKENS = 256
"""ExLlamaV2's page; vLLM's is 16, and the difference is below what a capacity plan can see."""


class Costs(Struct, frozen=True):
    """What steps cost and memory holds; all in seconds and tokens."""

    prefill_step_s: float = 0.05
    """What a step with prefill costs beside its tokens."""
    prefill_token_s: float = 1 / 20_000
    decode_step_s: float = 1 / 100
    """A step of one answer alone."""
    batch_penalty: float = 0.02
    """Share of ``decode_step_s`` that each further answer adds."""
    slots: int = 32
    context_tokens: int = 8192
    kv_tokens: int = 131_072
    prefill_chunk_tokens: int = 2048
    page_tokens: int = PAGE_TOKENS

    @classmethod
    def of(cls, spec: SimulatedSpec) -> Costs:
        """Read the costs from a spec."""
        return cls(
            prefill_step_s=spec.ttft_ms / 1000,
            prefill_token_s=1 / spec.prefill_tokens_per_s,
            decode_step_s=1 / spec.tokens_per_s,
            batch_penalty=spec.batch_penalty,
            slots=spec.slots,
            context_tokens=spec.context_tokens,
            kv_tokens=spec.kv_tokens,
            prefill_chunk_tokens=spec.prefill_chunk_tokens,
        )

    def step_s(self, prefill_tokens: int, answers: int) -> float:
        """How long a step takes that computes so many prompt tokens and writes on so many answers."""
        duration_s = 0.0
        if prefill_tokens:
            duration_s += self.prefill_step_s + prefill_tokens * self.prefill_token_s
        if answers:
            duration_s += self.decode_step_s * (1 + self.batch_penalty * (answers - 1))
        return duration_s


class Prompt(Struct, frozen=True):
    """A prompt as the model sees it: its length and, page by page, what it says."""

    tokens: int
    pages: tuple[int, ...] = ()
    """A chained hash per full page: equal hashes mean equal prompts up to there. Fewer than the full pages, or none,
    where what follows is known to be unique."""


def chained(pieces: Iterable[Hashable]) -> tuple[int, ...]:
    """Hash each piece together with all before it: what Prompt.pages holds."""
    hashes: list[int] = []
    before = 0
    for piece in pieces:
        before = hash((before, piece))
        hashes.append(before)
    return tuple(hashes)


class Started(Struct, frozen=True):
    """The request's prompt is computed; ``cached_tokens`` of it were found in the cache."""

    id: int
    cached_tokens: int


class Token(Struct, frozen=True):
    """The request wrote its token number ``index``, from 0."""

    id: int
    index: int


class Finished(Struct, frozen=True):
    """The request wrote its last token and its memory is free."""

    id: int


StepEvent = Started | Token | Finished


class StepResult(Struct, frozen=True):
    """What one step did; true once ``duration_s`` has passed."""

    duration_s: float
    events: tuple[StepEvent, ...]
    prefill_tokens: int
    answers: int
    """Answers that were already being written when the step began."""


class NeverFits(ValueError):  # noqa: N818  # the name says the state, not the class
    """The request could not be served by this model at any time."""


class _Job(Struct, eq=False):
    id: int
    prompt: Prompt
    output_tokens: int
    pages: int
    """Pages it reserves in all."""
    computed: int = 0
    """Tokens of the prompt that are in memory."""
    cached_tokens: int = 0
    shared: int = 0
    """Its first so many pages are shared ones."""
    written: int = 0


class StepModel:
    """The state of one simulated engine. Synchronous and deterministic; not thread-safe."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.steps = 0
        self._memory = Pages(costs.kv_tokens // costs.page_tokens)
        self._waiting: OrderedDict[int, _Job] = OrderedDict()
        self._running: dict[int, _Job] = {}

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot or for memory."""
        return len(self._waiting)

    @property
    def prompt_tokens_left(self) -> int:
        """Of running requests, still to be computed."""
        return sum(job.prompt.tokens - job.computed for job in self._running.values())

    @property
    def kv_tokens_used(self) -> int:
        """Tokens of memory reserved by running requests; unused cached pages don't count."""
        return self._memory.in_use * self.costs.page_tokens

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    def submit(self, id_: int, prompt: Prompt, max_tokens: int, output_tokens: int) -> None:
        """Queue a request that reserves memory for ``max_tokens`` and will write ``output_tokens``.

        Raises NeverFits where context or memory is too small, ValueError for senseless numbers.
        """
        if not (prompt.tokens >= 1 and 1 <= output_tokens <= max_tokens):
            raise ValueError(f"request {id_}: prompt, max_tokens or output_tokens out of range")
        if id_ in self._running or id_ in self._waiting:
            raise ValueError(f"request {id_} is here already")
        tokens = prompt.tokens + max_tokens
        pages = -(-tokens // self.costs.page_tokens)
        if tokens > self.costs.context_tokens:
            raise NeverFits(f"{tokens} tokens; the context holds {self.costs.context_tokens}")
        if pages > self._memory.total:
            raise NeverFits(f"{tokens} tokens; the cache holds {self.costs.kv_tokens}")
        self._waiting[id_] = _Job(id_, prompt, output_tokens, pages)

    def cancel(self, id_: int) -> bool:
        """Forget a request, queued or running, and free its memory; False where it isn't here."""
        job = self._running.pop(id_, None)
        if job is not None:
            self._free(job)
        return job is not None or self._waiting.pop(id_, None) is not None

    def step(self) -> StepResult | None:
        """Do one step; None where there is nothing to do."""
        self._admit()
        if not self._running:
            return None
        self.steps += 1
        writing = [job for job in self._running.values() if job.computed == job.prompt.tokens]
        events: list[StepEvent] = []
        prefill_tokens = self._prefill(events)
        for job in writing:
            self._write(job, events)
        duration_s = self.costs.step_s(prefill_tokens, len(writing))
        return StepResult(duration_s, tuple(events), prefill_tokens, len(writing))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.costs.slots:
            job = next(iter(self._waiting.values()))
            found = self._memory.longest(job.prompt.pages[: self._sharable(job)])
            if not self._memory.reserve(job.prompt.pages[:found], job.pages - found):
                return
            del self._waiting[job.id]
            self._running[job.id] = job
            job.shared = found
            job.computed = job.cached_tokens = found * self.costs.page_tokens

    def _sharable(self, job: _Job) -> int:
        """Pages of its prompt that a request may take from others: not the one with the last token."""
        return min(len(job.prompt.pages), (job.prompt.tokens - 1) // self.costs.page_tokens)

    def _prefill(self, events: list[StepEvent]) -> int:
        budget = self.costs.prefill_chunk_tokens
        for job in list(self._running.values()):
            if job.computed == job.prompt.tokens:
                continue
            self._share_anew(job)
            chunk = min(budget, job.prompt.tokens - job.computed)
            budget -= chunk
            job.computed += chunk
            self._publish(job)
            if job.computed == job.prompt.tokens:
                events.append(Started(job.id, job.cached_tokens))
                self._write(job, events)
            if not budget:
                break
        return self.costs.prefill_chunk_tokens - budget

    def _share_anew(self, job: _Job) -> None:
        """Take pages that others have computed since the request came in."""
        page = self.costs.page_tokens
        while (
            job.computed == job.shared * page
            and job.shared < self._sharable(job)
            and self._memory.adopt(job.prompt.pages[job.shared])
        ):
            job.shared += 1
            job.computed += page
            job.cached_tokens += page

    def _publish(self, job: _Job) -> None:
        """Let others share the full pages that are now computed."""
        full = min(len(job.prompt.pages), job.computed // self.costs.page_tokens)
        while job.shared < full:
            self._memory.publish(job.prompt.pages[job.shared])
            job.shared += 1

    def _write(self, job: _Job, events: list[StepEvent]) -> None:
        events.append(Token(job.id, job.written))
        job.written += 1
        if job.written == job.output_tokens:
            del self._running[job.id]
            self._free(job)
            events.append(Finished(job.id))

    def _free(self, job: _Job) -> None:
        self._memory.release(job.prompt.pages[: job.shared], job.pages - job.shared)
