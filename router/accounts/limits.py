"""Requests and tokens, a minute and a day, for each key on each model; and what a client hears of them.

A request is admitted by all its windows or by none: those that refuse are asked before any is charged. Tokens are
reserved as predicted and settled as they were, so that a hundred requests at once can't all slip under a limit that
only knows of answers that have ended. Times are monotonic, so no change of the wall clock matters.

Source: OpenAI's rate limits guide, for headers and messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from router.accounts.durations import go_duration, go_ms
from router.config.schema import Rates
from router.errors import ApiError, ErrorObject, retry_after_headers
from router.policy.gcra import Gcra, Hold, reserve_all

Resource = Literal["requests", "tokens"]

MINUTE_S = 60
DAY_S = 86_400
_NS_PER_MS = 1_000_000
_SHORT_MS = 1000
_SHORT = tuple(go_ms(ms) for ms in range(_SHORT_MS))
"""The durations below it, which most resets are."""


class Window(msgspec.Struct, frozen=True):
    """One limit of one pair."""

    words: str
    resource: Resource
    gcra: Gcra


class Refused(msgspec.Struct, frozen=True):
    """Why a request was not admitted."""

    window: Window
    used: int
    requested: int
    wait_s: float
    """Until it would be; infinite if it never would."""


class Windows:
    """The limits of one key on one model."""

    __slots__ = ("_all", "_counted", "_shown", "_weighed", "rates", "resources")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        rpm = _window("requests per min (RPM)", "requests", rates.rpm, MINUTE_S)
        rpd = _window("requests per day (RPD)", "requests", rates.rpd, DAY_S)
        tpm = _window("tokens per min (TPM)", "tokens", rates.tpm, MINUTE_S)
        tpd = _window("tokens per day (TPD)", "tokens", rates.tpd, DAY_S)
        self._all = tuple(window for window in (rpm, rpd, tpm, tpd) if window is not None)
        self._counted = tuple(w.gcra for w in (rpm, rpd) if w is not None)
        self._weighed = tuple(w.gcra for w in (tpm, tpd) if w is not None)
        # As Galadriel's headers did: requests of the day, tokens of the minute; else what there is.
        shown = tuple(w for w in (rpd or rpm, tpm or tpd) if w is not None)
        self._shown = tuple(_Shown(self._all.index(w), w) for w in shown)
        self.resources: tuple[Resource, ...] = tuple(w.resource for w in shown)
        """What is limited."""

    def admit(self, tokens: int, now: float) -> tuple[list[tuple[Gcra, Hold]], str] | None:
        """Take one request and hold ``tokens`` in each window of tokens; None, and nothing is taken, if one refuses.

        Returns the holds, and the lines of the answer's head that tell what is left (`lines`).
        """
        taken = reserve_all(self._counted, self._weighed, tokens, now)
        return None if taken is None else (taken[1], self._lines(taken[0]))

    def refusal(self, tokens: int, now: float) -> Refused | None:
        """The window that refuses; of several, the one to wait longest for."""
        worst: Refused | None = None
        for window in self._all:
            wanted = 1 if window.resource == "requests" else tokens
            wait_s = window.gcra.wait_s(wanted, now)
            if wait_s > 0 and (worst is None or wait_s > worst.wait_s):
                worst = Refused(window, window.gcra.used(now), wanted, wait_s)
        return worst

    def lines(self, now: float) -> str:
        """The six headers of OpenAI, or those of them that are limited, as lines of an answer's head."""
        return self._lines([window.gcra.level(now) for window in self._all])

    def _lines(self, levels: Sequence[int]) -> str:
        """The same for windows of those levels."""
        text = ""
        for one in self._shown:
            level = levels[one.place]
            if level == one.step:
                text += one.first
            else:
                remaining = one.limit - (level + one.step - 1) // one.step
                ms = (level + one.ms - 1) // one.ms
                reset = _SHORT[ms] if ms < _SHORT_MS else go_ms(ms)
                text += f"{one.before}{remaining if remaining > 0 else 0}{one.between}{reset}\r\n"
        return text

    def is_idle(self, now: float) -> bool:
        """Forgetting it changes nothing."""
        return all(window.gcra.is_idle(now) for window in self._all)


def _window(words: str, resource: Resource, limit: int | None, window_s: int) -> Window | None:
    return None if limit is None else Window(words, resource, Gcra(limit, window_s))


class _Shown:
    """A window as an answer's head tells of it."""

    __slots__ = ("before", "between", "first", "limit", "ms", "place", "step")

    def __init__(self, place: int, window: Window) -> None:
        gcra, resource = window.gcra, window.resource
        self.place = place
        """Among all windows."""
        self.step = gcra.step
        self.limit = gcra.limit
        self.ms = _NS_PER_MS * gcra.limit
        """A millisecond, in the limit's own time."""
        self.before = (
            f"x-ratelimit-limit-{resource}: {gcra.limit}\r\nx-ratelimit-remaining-{resource}: "
        )
        """What stands before what remains."""
        self.between = f"\r\nx-ratelimit-reset-{resource}: "
        """What stands between that and the reset."""
        reset = go_ms(-(-self.step // self.ms))
        self.first = f"{self.before}{gcra.limit - 1}{self.between}{reset}\r\n"
        """The lines for one unit alone: what a request hears that finds all others drained."""


def headers_of(lines: str) -> dict[str, str]:
    """Lines of an answer's head as names and values."""
    pairs = (line.partition(": ") for line in lines.splitlines())
    return {name: value for name, _, value in pairs}


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
