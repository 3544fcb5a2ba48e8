"""One account at a provider: how long its answers take, and the limits it keeps.

    time to the first token   lognormal, of its own median
    time per token after it   lognormal, drawn once an answer
    limits                    requests and tokens a minute, each a token bucket that holds some seconds' worth
    outages                   spans in which everything is a 503

A refusal is a 429 that costs nothing, with the headers of OpenAI's dialect and a retry-after in whole seconds; every
answer has the headers, too, unless the provider is one that keeps quiet.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from msgspec import Struct

from router.accounts.durations import go_duration
from router.config.schema import Counts

MINUTE_S = 60.0
ROUND_TRIP_S = 0.05
"""A refusal's: across a continent, and no model is asked."""
TTFT_SIGMA, TOKEN_SIGMA = 0.5, 0.3
"""Of the logarithms: the 95th percentile is 2.3 and 1.6 times the median."""


class Account(Struct, frozen=True):
    """What one account has; None is no limit."""

    rpm: int | None = None
    tpm: int | None = None
    burst_s: float = MINUTE_S
    """How much of it may come at once; many providers keep a minute's limit over spans of 1 to 10 s."""
    ttft_s: float = 0.5
    token_s: float = 0.015
    """Medians; 0.5 s and 67 tokens a second are what hosted models of middle size show."""


class Bucket:
    """One limit: full at first, refilled evenly."""

    def __init__(self, a_minute: int, burst_s: float) -> None:
        self.limit = max(1, round(a_minute * burst_s / MINUTE_S))
        self._a_second = a_minute / MINUTE_S
        self._used = 0.0
        self._at = 0.0

    def used(self, now: float) -> float:
        """What has not come back; above the limit where answers were longer than there was room."""
        return max(0.0, self._used - (now - self._at) * self._a_second)

    def wait_s(self, units: int, now: float) -> float:
        """How long until they fit; what never fits alone is let through when it is full."""
        missing = self.used(now) + min(units, self.limit) - self.limit
        return max(0.0, missing / self._a_second)

    def reset_s(self, now: float) -> float:
        """How long until it is full."""
        return self.used(now) / self._a_second

    def take(self, units: int, now: float) -> None:
        """They are used."""
        self._used = self.used(now) + units
        self._at = now


class Heard(Struct, frozen=True):
    """What a request's response says at once, and when."""

    status: int
    headers: Mapping[str, str]
    after_s: float
    """From sending to the first token, or to the refusal."""
    rest_s: float = 0.0
    """From the first token to the last."""


class SimulatedProvider:
    """One account, under way."""

    def __init__(
        self, account: Account, rng: random.Random, *, counts: Counts, tells: bool
    ) -> None:
        """``tells``: its responses have headers of its limits."""
        self._account = account
        self._rng = rng
        self._tells = tells
        self._late = counts != "max_tokens"
        """The answer is counted when it is written."""
        self._requests = Bucket(account.rpm, account.burst_s) if account.rpm else None
        self._tokens = Bucket(account.tpm, account.burst_s) if account.tpm else None
        self.outages: list[tuple[float, float]] = []

    def ask(self, input_tokens: int, output_tokens: int, now: float) -> Heard:
        """A request comes."""
        if any(start <= now < end for start, end in self.outages):
            return Heard(503, {}, ROUND_TRIP_S)
        tokens = input_tokens + (0 if self._late else output_tokens)
        asked = [(self._requests, 1), (self._tokens, tokens)]
        wait = max((one.wait_s(units, now) for one, units in asked if one is not None), default=0.0)
        if wait > 1e-9:
            after = {"retry-after": str(math.ceil(wait))}
            return Heard(429, {**self._headers(now), **after}, ROUND_TRIP_S)
        for one, units in asked:
            if one is not None:
                one.take(units, now)
        account, normal = self._account, self._rng.gauss
        first = account.ttft_s * math.exp(TTFT_SIGMA * normal(0, 1))
        pace = account.token_s * math.exp(TOKEN_SIGMA * normal(0, 1))
        return Heard(200, self._headers(now), first, pace * (output_tokens - 1))

    def ended(self, output_tokens: int, now: float) -> None:
        """An answer is whole."""
        if self._late and self._tokens is not None:
            self._tokens.take(output_tokens, now)

    def _headers(self, now: float) -> dict[str, str]:
        if not self._tells:
            return {}
        found = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                used = bucket.used(now)
                found[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                left = max(0, math.floor(bucket.limit - used))
                found[f"x-ratelimit-remaining-{name}"] = str(left)
                reset = go_duration(bucket.reset_s(now))
                found[f"x-ratelimit-reset-{name}"] = reset
        return found
