"""The least cost in seconds, to this request and to those already there.

    u, c     prompt tokens to compute and found in the cache       L = u + c
    w        = a u + b (u c + u^2/2)             prefill of this request
    P        prefill that is pending             B requests in flight, K tokens of context being decoded
    O        the answer's expected length
    score    = [ P + w + W + O (g B + d K)       what it will wait for and share
               + B w + B O (g + d L) ]           what it costs the B others: a stall of w, and slower steps after
               / rate
    W        = share of its memory that is missing, times the time the batch takes to turn over

a, b, g and d are the engine's costs (`router.load.Costs`); rate is learned from first tokens and finds GPUs that are
slow, sick or shared. The sum in seconds is what lets a cache hit, a queue and a slow GPU be weighed against each other
without a tuned exponent. On an idle pool all scores are equal: then whoever was picked longest ago serves.

Source: the terms are those of chunked-prefill engines (A. Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM
Inference with Sarathi-Serve", OSDI 2024); charging a newcomer for the delay of others is A. C. Pigou's, 1920.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Costs, Demand
from router.policy import C


class ExpectedCost:
    """Smallest expected cost; see the module."""

    wants_facts: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turn = 0
        self._picked: dict[int, int] = {}

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the smallest score."""
        cached, length, output = demand.cached, demand.input_tokens, demand.output_tokens
        picked = self._picked
        chosen = candidates[0]
        best = (float("inf"), 0)
        known: tuple[Costs | None, int] = (None, 0)
        work = 0.0
        for candidate in candidates:
            load = candidate.load
            costs, others = load.costs, load.inflight
            hit = cached.get(load.slot, 0)
            if (
                known[0] is not costs or known[1] != hit
            ):  # engines of a kind differ only in their caches
                known, work = (costs, hit), costs.prefill_s(length - hit, hit)
            shared = 2 * costs.request_s * others
            shared += costs.context_s * (load.context_tokens + others * length)
            score = load.pending_us * 1e-6 + work * (1 + others) + output * shared
            capacity = load.capacity_tokens
            if capacity is not None:
                missing = load.reserved_tokens + length + output - capacity
                if missing > 0:
                    step = costs.step_s + costs.request_s * others
                    step += costs.context_s * load.context_tokens
                    score += missing / capacity * output * step
            score /= load.rate.value * candidate.weight
            if score <= best[0]:
                rank = (score, picked.get(candidate.order, 0))
                if rank < best:
                    best, chosen = rank, candidate
        self._turn += 1
        picked[chosen.order] = self._turn
        return chosen
