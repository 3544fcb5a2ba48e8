"""A target's load in tokens and seconds, and what one request adds to it.

Everything here is counted by leases: what a request adds when it is sent, it takes back when it is settled, to the
last unit, because all sums are whole numbers. Nothing polled ever resets them: on polled figures alone a pool herds
onto whoever looked idle a second ago.

What is known of a request comes from its text, not from a tokenizer, so these are estimates; what matters is that
they are the same estimate on the way in and on the way out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping

import msgspec


class Costs(msgspec.Struct, frozen=True):
    """What work costs on an engine, in seconds. Ratios matter, not sizes: the learned rate corrects a common error.

    The defaults are an 8 B model with grouped-query attention on one 80 GB A100: 16 GFLOP a token at 170 TFLOP/s,
    half a MFLOP more for each token before it, 16 GB of weights and 128 KiB of keys and values a token at 1.6 TB/s.
    """

    prefill_token_s: float = 1 / 10_600
    attention_s: float = 3.1e-9
    """For each token of a prompt, times the tokens before it."""
    step_s: float = 0.010
    """A decode step beside what its requests add: reading the weights."""
    request_s: float = 1e-4
    """What each request of the batch adds to a step: sampling and bookkeeping."""
    context_s: float = 8.2e-8
    """What each token in the batch's memory adds to a step."""

    def prefill_s(self, new: int, cached: int) -> float:
        """Computing ``new`` tokens behind ``cached`` ones."""
        return self.prefill_token_s * new + self.attention_s * new * (cached + new / 2)


class Facts(msgspec.Struct, frozen=True):
    """What balancing needs to know of a request."""

    input_tokens: int
    blocks: tuple[int, ...] = ()
    """Chained hashes of its prompt's full blocks; see router.prefix."""
    output_limit: int | None = None


class Demand(msgspec.Struct, frozen=True):
    """A request as a policy sees it."""

    input_tokens: int = 0
    output_tokens: float = 0.0
    """The answer's expected length."""
    cached: Mapping[int, int] = {}
    """Prompt tokens that targets are thought to hold already, by their slot; others hold none."""


class Claim(msgspec.Struct, frozen=True):
    """What one request adds to its target's load."""

    uncached_tokens: int = 0
    context_tokens: int = 0
    reserved_tokens: int = 0
    work_us: int = 0
    """Predicted microseconds of prefill."""


UNKNOWN = Demand()
"""For policies that don't look at the request."""
NOTHING = Claim()
SAMPLES = 64
"""Enough for a 90th percentile that one odd answer can't move, few enough to see a GPU slow down within minutes."""
FEW = 8
"""Below so many samples a percentile is one answer's luck."""
QUANTILE = 0.9
"""Waiting for others makes a first token late, never early; so the best tenth shows the engine's own speed."""


class Rate:
    """How fast a target is against its prediction: the 90th percentile of predicted over observed seconds to the
    first token. Finds GPUs that are slow, hot or shared.
    """

    __slots__ = ("_order", "_samples", "value")

    def __init__(self) -> None:
        self._samples: deque[float] = deque()
        self._order: list[float] = []
        self.value = 1.0

    def saw(self, predicted_s: float, observed_s: float) -> None:
        """A first token came after ``observed_s``."""
        if predicted_s <= 0 or observed_s <= 0:
            return
        ratio = predicted_s / observed_s
        self._samples.append(ratio)
        insort(self._order, ratio)
        if len(self._samples) > SAMPLES:
            del self._order[bisect_left(self._order, self._samples.popleft())]
        if len(self._samples) >= FEW:
            self.value = self._order[int(QUANTILE * (len(self._order) - 1))]


class FirstTokens:
    """How long first tokens usually take: quantiles over the last answers, kept apart by powers of four of the
    prompt's length, for a queue is the same for all and prefill isn't. Of a size that was seldom seen nothing is said.
    """

    __slots__ = ("_by_size",)

    FEW = 20
    """Below so many the 95th percentile is the slowest one's luck."""

    def __init__(self) -> None:
        self._by_size: dict[int, deque[float]] = {}

    def saw(self, tokens: int, seconds: float) -> None:
        """A prompt of about ``tokens`` had its first token after ``seconds``."""
        size = tokens.bit_length() >> 1
        samples = self._by_size.get(size)
        if samples is None:
            samples = self._by_size[size] = deque(maxlen=SAMPLES)
        samples.append(seconds)

    def quantile(self, tokens: int, q: float) -> float | None:
        """The seconds that a share ``q`` of such prompts stayed within; None where too little is known."""
        samples = self._by_size.get(tokens.bit_length() >> 1)
        if samples is None or len(samples) < self.FEW:
            return None
        return sorted(samples)[int(q * (len(samples) - 1))]


FIRST_MEAN = 200.0
"""Public chat traces have means of 211 (Azure 2023) and 347 (Mooncake); a few answers correct it."""
MEAN_SHARE = 1 / 64
"""Of a new answer in the mean."""


class MeanOutput:
    """The mean length of a model's answers, in tokens."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = FIRST_MEAN

    def saw(self, tokens: int) -> None:
        """An answer ended."""
        self.value += MEAN_SHARE * (tokens - self.value)


class Load:
    """What a target has to do, now. Mutated by leases only."""

    __slots__ = (
        "capacity_tokens",
        "context_tokens",
        "costs",
        "first_tokens",
        "inflight",
        "max_batch",
        "pending_tokens",
        "pending_us",
        "rate",
        "reserved_tokens",
        "slot",
    )

    def __init__(
        self,
        slot: int = 0,
        costs: Costs | None = None,
        capacity_tokens: int | None = None,
        max_batch: int | None = None,
    ) -> None:
        """``slot``: its place in the prefix index. ``capacity_tokens``: what its cache holds, ``max_batch``: requests
        that it answers at the same time; None is unknown.
        """
        self.slot = slot
        self.max_batch = max_batch
        self.costs = costs or Costs()
        self.capacity_tokens = capacity_tokens
        self.inflight = 0
        self.pending_tokens = 0
        """Uncached prompt tokens of requests without a first token."""
        self.pending_us = 0
        """The same in predicted microseconds."""
        self.context_tokens = 0
        """Prompt tokens of requests that are being answered."""
        self.reserved_tokens = 0
        self.rate = Rate()
        self.first_tokens = FirstTokens()
        """Of streams."""

    @property
    def step_s(self) -> float:
        """A decode step of the batch as it is."""
        costs = self.costs
        return (
            costs.step_s + costs.request_s * self.inflight + costs.context_s * self.context_tokens
        )

    def first_token_s(self, demand: Demand) -> float:
        """How long a request would wait for its first token here: prompts before it, its own, and a place."""
        costs = self.costs
        hit = demand.cached.get(self.slot, 0)
        prefill = self.pending_us * 1e-6 + costs.prefill_s(demand.input_tokens - hit, hit)
        missing = 0.0
        if self.max_batch is not None:
            missing = (self.inflight + 1 - self.max_batch) / self.max_batch
        if self.capacity_tokens is not None:
            need = self.reserved_tokens + demand.input_tokens + demand.output_tokens
            missing = max(missing, (need - self.capacity_tokens) / self.capacity_tokens)
        if missing > 0:
            prefill += missing * demand.output_tokens * self.step_s
        return prefill / self.rate.value

    def claim(self, demand: Demand) -> Claim:
        """What a request would add here."""
        given = demand.input_tokens
        if not given:
            return NOTHING
        hit = demand.cached.get(self.slot, 0)
        work_us = int(1e6 * self.costs.prefill_s(given - hit, hit))
        return Claim(given - hit, given, given + int(demand.output_tokens), work_us)

    def add(self, claim: Claim) -> None:
        """A request is sent; whoever sends it counts it in ``inflight``."""
        self.pending_tokens += claim.uncached_tokens
        self.pending_us += claim.work_us
        self.reserved_tokens += claim.reserved_tokens

    def begin(self, claim: Claim) -> None:
        """Its first token is there: no prompt any more, but context."""
        self.pending_tokens -= claim.uncached_tokens
        self.pending_us -= claim.work_us
        self.context_tokens += claim.context_tokens

    def remove(self, claim: Claim, *, begun: bool) -> None:
        """It is over; ``begun``: it had its first token. Whoever sent it counts it out."""
        self.reserved_tokens -= claim.reserved_tokens
        if begun:
            self.context_tokens -= claim.context_tokens
        else:
            self.pending_tokens -= claim.uncached_tokens
            self.pending_us -= claim.work_us
