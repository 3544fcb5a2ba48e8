"""One's own GPUs first, rented ones when the wait for a first token grows beyond what a provider would take.

An engine is paid for whether it works or not, a provider by the token; so requests stay here until the best engine's
expected first token is later than the best provider's usual one by more than the owner is ready to wait. Engines are
chosen among, and providers, by a policy each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C, Policy

USUAL_S = 1.0
"""A provider's first token, before enough of them were seen; public comparisons have 0.3 to 2 s for open models."""


class LocalFirst:
    """Engines, then providers; see the module."""

    wants_facts: ClassVar[bool] = True

    def __init__(self, engines: Policy, providers: Policy, spill_s: float) -> None:
        """``spill_s``: how much later than a provider's an engine's first token may be."""
        self._engines = engines
        self._providers = providers
        self._spill_s = spill_s

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:
        """The best engine, if it is soon enough or there is no provider; else the best provider."""
        here = [one for one in candidates if one.local]
        if not here:
            return self._providers.pick(candidates, demand, now, rng)
        engine = self._engines.pick(here, demand, now, rng)
        if len(here) == len(candidates):
            return engine
        wait_s = engine.load.first_token_s(demand)
        if wait_s <= self._spill_s:
            return engine
        there = [one for one in candidates if not one.local]
        provider = self._providers.pick(there, demand, now, rng)
        usual_s = provider.load.first_tokens.quantile(demand.input_tokens, 0.5)
        late_s = wait_s - (USUAL_S if usual_s is None else usual_s)
        return engine if late_s <= self._spill_s else provider
