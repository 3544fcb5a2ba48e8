"""Requests and tokens, a minute and a day, for each key on each model; and what a client hears of them.

A request is admitted by all its windows or by none: those that refuse are asked before any is charged. Tokens are
reserved as predicted and settled as they were, so that a hundred requests at once can't all slip under a limit that
only knows of answers that have ended. Times are monotonic, so no change of the wall clock matters.

A pair's windows are forgotten once they are full again and idle, which changes nothing for anybody.

Source: OpenAI's rate limits guide, for headers and messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from router.accounts.durations import go_duration
from router.config.schema import Rates
from router.errors import ApiError, ErrorObject, retry_after_headers
from router.policy.gcra import Gcra, Hold

Resource = Literal["requests", "tokens"]

MINUTE_S = 60
DAY_S = 86_400
SWEEP_FLOOR = 1024
"""Pairs below which nobody looks for idle ones: under a megabyte."""


class Window(msgspec.Struct, frozen=True):
    """One limit of one pair."""

    words: str
    resource: Resource
    gcra: Gcra
    headers: tuple[str, str, str]
    """Names of those that tell limit, remaining and reset."""


class Refused(msgspec.Struct, frozen=True):
    """Why a request was not admitted."""

    window: Window
    used: int
    requested: int
    wait_s: float
    """Until it would be; infinite if it never would."""


class Windows:
    """The limits of one key on one model."""

    __slots__ = ("_all", "_shown", "_tokens", "rates", "resources")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        rpm = _window("requests per min (RPM)", "requests", rates.rpm, MINUTE_S)
        rpd = _window("requests per day (RPD)", "requests", rates.rpd, DAY_S)
        tpm = _window("tokens per min (TPM)", "tokens", rates.tpm, MINUTE_S)
        tpd = _window("tokens per day (TPD)", "tokens", rates.tpd, DAY_S)
        self._all = tuple(window for window in (rpm, rpd, tpm, tpd) if window is not None)
        self._tokens = tuple(w for w in (tpm, tpd) if w is not None)
        # As Galadriel's headers did: requests of the day, tokens of the minute; else what there is.
        self._shown = tuple(w for w in (rpd or rpm, tpm or tpd) if w is not None)
        self.resources: tuple[Resource, ...] = tuple(w.resource for w in self._shown)
        """What is limited."""

    def refusal(self, tokens: int, now: float) -> Refused | None:
        """The window that refuses; of several, the one to wait longest for."""
        worst: Refused | None = None
        for window in self._all:
            wanted = 1 if window.resource == "requests" else tokens
            wait_s = window.gcra.wait_s(wanted, now)
            if wait_s > 0 and (worst is None or wait_s > worst.wait_s):
                worst = Refused(window, window.gcra.used(now), wanted, wait_s)
        return worst

    def take(self, tokens: int, now: float) -> tuple[Hold, ...]:
        """Take one request, and hold ``tokens`` in each window of tokens."""
        for window in self._all:
            if window.resource == "requests":
                window.gcra.take(1, now)
        return tuple(window.gcra.reserve(tokens, now) for window in self._tokens)

    def settle(self, holds: tuple[Hold, ...], tokens: int, now: float) -> None:
        """It was ``tokens``."""
        for window, hold in zip(self._tokens, holds, strict=True):
            window.gcra.settle(hold, tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """The six of OpenAI, or those of them that are limited."""
        found: dict[str, str] = {}
        for window in self._shown:
            gcra = window.gcra
            limit, remaining, reset = window.headers
            found[limit] = str(gcra.limit)
            found[remaining] = str(gcra.remaining(now))
            found[reset] = go_duration(gcra.reset_s(now))
        return found

    def is_idle(self, now: float) -> bool:
        """Forgetting it changes nothing."""
        return all(window.gcra.is_idle(now) for window in self._all)


def _window(words: str, resource: Resource, limit: int | None, window_s: int) -> Window | None:
    if limit is None:
        return None
    headers = (
        f"x-ratelimit-limit-{resource}",
        f"x-ratelimit-remaining-{resource}",
        f"x-ratelimit-reset-{resource}",
    )
    return Window(words, resource, Gcra(limit, window_s), headers)


class Limiter:
    """The windows of every pair that was used lately."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], Windows] = {}
        self._sweep_at = SWEEP_FLOOR

    def __len__(self) -> int:
        return len(self._pairs)

    def windows(self, key_id: str, model: str, rates: Rates, now: float) -> Windows:
        """The pair's windows; new ones if it has other limits now."""
        pair = (key_id, model)
        found = self._pairs.get(pair)
        if found is None or found.rates != rates:
            if len(self._pairs) >= self._sweep_at:
                self._sweep(now)
            found = self._pairs[pair] = Windows(rates)
        return found

    def _sweep(self, now: float) -> None:
        """Forget who is idle; the next time is when there are twice as many, so a request pays little for it."""
        self._pairs = {pair: w for pair, w in self._pairs.items() if not w.is_idle(now)}
        self._sweep_at = max(SWEEP_FLOOR, 2 * len(self._pairs))


def limit_error(key_id: str, model: str, refused: Refused, headers: Mapping[str, str]) -> ApiError:
    """429 in OpenAI's words. A request larger than the whole limit is told so: no wait mends it."""
    window, requested = refused.window, refused.requested
    where = f"for {model} in organization {key_id} on {window.words}: Limit {window.gcra.limit}"
    if refused.wait_s == float("inf"):
        message = (
            f"Request too large {where}, Requested {requested}. "
            "The input or output tokens must be reduced in order to run successfully."
        )
        more = {"x-should-retry": "false"}
    else:
        message = (
            f"Rate limit reached {where}, Used {refused.used}, Requested {requested}. "
            f"Please try again in {go_duration(refused.wait_s)}."
        )
        more = retry_after_headers(refused.wait_s)
    error = ErrorObject(message, window.resource, None, "rate_limit_exceeded")
    return ApiError(429, error, headers={**headers, **more})
