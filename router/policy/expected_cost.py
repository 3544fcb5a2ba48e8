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

from router.load import Costs, Demand, Load
from router.policy import C, Turns


class ExpectedCost:
    """Smallest expected cost; see the module."""

    wants_facts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turns = Turns()

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the smallest score."""
        length, output, cached = demand.input_tokens, demand.output_tokens, demand.cached
        last = self._turns.picked.get
        need = length + output
        chosen, best, turn = candidates[0], float("inf"), 0
        known: Costs | None = None
        hit = known_hit = 0
        work = per_request = per_token = 0.0
        for candidate in candidates:
            load = candidate.load
            if cached:
                hit = cached.get(load.slot, 0)
            if load.costs is not known or hit != known_hit:
                # Engines of a kind differ only in their caches.
                known, known_hit = load.costs, hit
                work = known.prefill_s(length - hit, hit)
                per_token = output * known.context_s
                per_request = work + 2 * output * known.request_s + per_token * length
            score = load.pending_us * 1e-6 + work + load.inflight * per_request
            score += per_token * load.context_tokens
            capacity = load.capacity_tokens
            if capacity is not None and load.reserved_tokens + need > capacity:
                score += self._crowding(load, need, output)
            score /= load.rate.value * candidate.weight
            if score < best:
                chosen, best, turn = candidate, score, -1
            elif score == best:
                if turn < 0:
                    turn = last(chosen.order, 0)
                other = last(candidate.order, 0)
                if other < turn:
                    chosen, turn = candidate, other
        return self._turns.take(chosen)

    @staticmethod
    def _crowding(load: Load, need: float, output: float) -> float:
        """Seconds to wait for memory: the missing share of it, times the time the batch takes to turn over."""
        assert load.capacity_tokens is not None, "asked only where it is known"
        missing = load.reserved_tokens + need - load.capacity_tokens
        return missing / load.capacity_tokens * output * load.step_s
