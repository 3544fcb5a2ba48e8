"""When a target is left alone: failures in a row or a low rate of success eject it, one probe decides on its return.

    ADMITTING --TRIPPED--> EJECTED --PROBE_SENT--> PROBING --PROBE_GOOD--> ADMITTING
                              ^                       |
                              +---- PROBE_BAD --------+   (ejected for longer)
                              +---- PROBE_VOID -------+   (nobody knows: the next request probes)

Whoever sends a request takes a permit, and its outcome counts only while the permit is of the present term: each
move starts a new one. So a straggler's late success can't readmit a target, nor its late failure eject it anew.
Probes are real requests: a health check of a language model costs money.

Two signals, for each is blind where the other sees: failures among answers may never come five in a row, and a
target that died a second ago still has a good rate. Targets that stand in for each other form a cohort,
of which only a share may be out at once: where most seem to fail, what they share is the likelier culprit.

Source: Envoy's outlier detection (consecutive failures; ejection time grows with each ejection in a row;
max_ejection_percent); Finagle's failure accrual (a row, or the rate in a window); linkerd2-proxy's (one probe).
"""

from __future__ import annotations

import enum
import math
from collections import deque

import msgspec

from router.errors import IllegalMove


class State(enum.Enum):
    """Named by effect."""

    ADMITTING = "admitting"
    EJECTED = "ejected"
    PROBING = "probing"


class Move(enum.Enum):
    """What makes it change."""

    TRIPPED = "tripped"
    PROBE_SENT = "probe_sent"
    PROBE_GOOD = "probe_good"
    PROBE_BAD = "probe_bad"
    PROBE_VOID = "probe_void"


class Verdict(enum.Enum):
    """What one request says about its target."""

    GOOD = "good"
    BAD = "bad"
    LIMITED = "limited"
    """It was too busy for this one: that counts in its rate of success, but is no failure in a row."""
    VOID = "void"
    """Nothing: cancelled, or the request itself was wrong, or the fault is ours."""


# Reading a member through its class costs more than the rest of `admits` in Python 3.11.
_ADMITTING, _EJECTED, _PROBING = State.ADMITTING, State.EJECTED, State.PROBING
_GOOD, _VOID = Verdict.GOOD, Verdict.VOID


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.ADMITTING, Move.TRIPPED): State.EJECTED,
    (State.EJECTED, Move.PROBE_SENT): State.PROBING,
    (State.PROBING, Move.PROBE_GOOD): State.ADMITTING,
    (State.PROBING, Move.PROBE_BAD): State.EJECTED,
    (State.PROBING, Move.PROBE_VOID): State.EJECTED,
}

MAX_EJECT_FACTOR = 10
"""Envoy's max_ejection_time is 10 times its base: a target that came back after a day must not wait for another."""


BUCKETS = 10
"""Of a window: an outcome is forgotten between nine tenths of the window and the whole after it happened."""


class SuccessRate:
    """The share of good answers among the latest, in exact buckets of time.

    Not an average over the window, in which a burst of failures drowns: as many of the newest buckets as together
    hold the sample, and no rate where the window doesn't hold it.
    """

    __slots__ = ("_bucket_s", "_buckets", "_ends", "_min_requests", "_min_success", "_newest")

    def __init__(
        self, window_s: float = 30.0, min_requests: int = 20, min_success: float = 0.5
    ) -> None:
        """``min_success``: the share under which the rate is low, in a sample of ``min_requests`` or more."""
        self._bucket_s = window_s / BUCKETS
        self._min_requests = min_requests
        self._min_success = min_success
        self._buckets: deque[list[int]] = deque(maxlen=BUCKETS)  # tick, good ones, all
        self._newest = [0, 0, 0]
        self._ends = -math.inf
        """When the newest bucket does."""

    def saw(self, now: float, good: int) -> None:
        """A request ended; ``good``: 1 where it ended well, else 0."""
        if now >= self._ends:
            tick = int(now / self._bucket_s)
            self._newest = [tick, 0, 0]
            self._buckets.append(self._newest)
            self._ends = (tick + 1) * self._bucket_s
        newest = self._newest
        newest[1] += good
        newest[2] += 1

    def is_low(self, now: float) -> bool:
        """Whether too few of the latest were good; False where there were too few to tell."""
        forgotten = int(now / self._bucket_s) - BUCKETS
        good = seen = 0
        for tick, good_ones, all_ones in reversed(self._buckets):
            if tick <= forgotten:
                break
            good += good_ones
            seen += all_ones
            if seen >= self._min_requests:
                return good < self._min_success * seen
        return False

    def clear(self) -> None:
        """Forget everything."""
        self._buckets.clear()
        self._ends = -math.inf


class Cohort:
    """Targets that stand in for each other, and how many of them are out: ejected and not readmitted yet."""

    __slots__ = ("most", "out")

    def __init__(self, size: int, max_ejected: float) -> None:
        """Of ``size`` targets at most the share ``max_ejected`` may be out at once, and one in any case."""
        self.most = max(1, int(size * max_ejected + 1e-9))
        self.out = 0


class Permit(msgspec.Struct, frozen=True):
    """The right to be judged, while its term lasts."""

    term: int
    probe: bool


class Breaker:
    """The health of one target."""

    __slots__ = (
        "_bad_in_a_row",
        "_cohorts",
        "_eject_s",
        "_failures",
        "_rate",
        "_term",
        "ejections",
        "permit",
        "state",
        "until",
    )

    def __init__(self, failures: int, eject_s: float, rate: SuccessRate | None = None) -> None:
        """``failures`` in a row or a low ``rate`` eject for ``eject_s`` times the number of ejections in a row."""
        self._failures = failures
        self._eject_s = eject_s
        self._rate = rate or SuccessRate()
        self._bad_in_a_row = 0
        self._term = 0
        self._cohorts: list[Cohort] = []
        self.ejections = 0
        """In a row."""
        self.state = _ADMITTING
        self.permit = Permit(0, probe=False)
        """What `enter` gives while it admits: the same to all of a term."""
        self.until = 0.0
        """When an ejected target may be probed."""

    def join(self, cohort: Cohort) -> None:
        """From now on it can be ejected only where ``cohort`` has room for one more that is out."""
        self._cohorts.append(cohort)

    def admits(self, now: float) -> bool:
        """Whether a request may go there."""
        if self.state is _ADMITTING:
            return True
        return self.state is _EJECTED and now >= self.until

    @property
    def badness(self) -> tuple[bool, int]:
        """The smaller, the likelier a request is served well in a panic: who isn't being probed already, then
        who was ejected least often.
        """
        return self.state is _PROBING, self.ejections

    def enter(self) -> Permit:
        """A request goes there. An ejected target takes it as its probe, also before its time (panic); while one
        probe is under way, others aren't judged.
        """
        if self.state is _EJECTED:
            self._move(Move.PROBE_SENT)
            return Permit(self._term, probe=True)
        return self.permit

    def settle(self, permit: Permit, verdict: Verdict, now: float) -> bool:
        """Hear how a request ended; true where that changed the state."""
        if permit.term != self._term:
            return False
        if permit.probe:
            self._settle_probe(verdict, now)
            return True
        if verdict is _GOOD:
            self._rate.saw(now, 1)
            self._bad_in_a_row = 0
            return False
        if verdict is _VOID:
            return False
        self._rate.saw(now, 0)
        if verdict is Verdict.BAD:
            self._bad_in_a_row += 1
        if self._bad_in_a_row < self._failures and not self._rate.is_low(now):
            return False
        return self._trip(now)

    def _trip(self, now: float) -> bool:
        if any(cohort.out >= cohort.most for cohort in self._cohorts):
            return False
        for cohort in self._cohorts:
            cohort.out += 1
        self._eject(Move.TRIPPED, now)
        return True

    def _settle_probe(self, verdict: Verdict, now: float) -> None:
        if verdict is Verdict.GOOD:
            self._move(Move.PROBE_GOOD)
            self.ejections = 0
            for cohort in self._cohorts:
                cohort.out -= 1
        elif verdict is Verdict.VOID:
            self._move(Move.PROBE_VOID)
        else:
            self._eject(Move.PROBE_BAD, now)

    def _eject(self, move: Move, now: float) -> None:
        self._move(move)
        self.ejections += 1
        self._bad_in_a_row = 0
        self._rate.clear()
        self.until = now + self._eject_s * min(self.ejections, MAX_EJECT_FACTOR)

    def _move(self, move: Move) -> None:
        try:
            self.state = TRANSITIONS[self.state, move]
        except KeyError:
            raise IllegalMove("breaker", self.state, move) from None
        self._term += 1
        self.permit = Permit(self._term if self.state is _ADMITTING else -1, probe=False)
