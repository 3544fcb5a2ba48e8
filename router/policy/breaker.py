"""When a target is left alone: too many failures in a row eject it, one probe decides on its return.

    ADMITTING --TRIPPED--> EJECTED --PROBE_SENT--> PROBING --PROBE_GOOD--> ADMITTING
                              ^                       |
                              +---- PROBE_BAD --------+   (ejected for longer)
                              +---- PROBE_VOID -------+   (nobody knows: the next request probes)

Whoever sends a request takes a permit, and its outcome counts only while the permit is of the present term: each
move starts a new one. So a straggler's late success can't readmit a target, nor its late failure eject it anew.
Probes are real requests: a health check of a language model costs money.

Source: Envoy's outlier detection (consecutive failures; ejection time grows with each ejection in a row);
linkerd2-proxy's failure accrual (one probe).
"""

from __future__ import annotations

import enum

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
    VOID = "void"
    """Nothing: cancelled, or the request itself was wrong."""


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.ADMITTING, Move.TRIPPED): State.EJECTED,
    (State.EJECTED, Move.PROBE_SENT): State.PROBING,
    (State.PROBING, Move.PROBE_GOOD): State.ADMITTING,
    (State.PROBING, Move.PROBE_BAD): State.EJECTED,
    (State.PROBING, Move.PROBE_VOID): State.EJECTED,
}

MAX_EJECT_FACTOR = 10
"""Envoy's max_ejection_time is 10 times its base: a target that came back after a day must not wait for another."""


class Permit(msgspec.Struct, frozen=True):
    """The right to be judged, while its term lasts."""

    term: int
    probe: bool


class Breaker:
    """The health of one target."""

    __slots__ = ("_bad_in_a_row", "_eject_s", "_ejections", "_failures", "_term", "state", "until")

    def __init__(self, failures: int, eject_s: float) -> None:
        """``failures`` in a row eject for ``eject_s`` times the number of ejections in a row."""
        self._failures = failures
        self._eject_s = eject_s
        self._bad_in_a_row = 0
        self._ejections = 0
        self._term = 0
        self.state = State.ADMITTING
        self.until = 0.0
        """When an ejected target may be probed."""

    def admits(self, now: float) -> bool:
        """Whether a request may go there."""
        if self.state is State.ADMITTING:
            return True
        return self.state is State.EJECTED and now >= self.until

    def enter(self) -> Permit:
        """A request goes there. An ejected target takes it as its probe, also before its time (panic); while one
        probe is under way, others aren't judged.
        """
        if self.state is State.EJECTED:
            self._move(Move.PROBE_SENT)
            return Permit(self._term, probe=True)
        return Permit(self._term if self.state is State.ADMITTING else -1, probe=False)

    def settle(self, permit: Permit, verdict: Verdict, now: float) -> bool:
        """Hear how a request ended; true where that changed the state."""
        if permit.term != self._term:
            return False
        if permit.probe:
            self._settle_probe(verdict, now)
            return True
        if verdict is Verdict.GOOD:
            self._bad_in_a_row = 0
        elif verdict is Verdict.BAD:
            self._bad_in_a_row += 1
            if self._bad_in_a_row >= self._failures:
                self._eject(Move.TRIPPED, now)
                return True
        return False

    def _settle_probe(self, verdict: Verdict, now: float) -> None:
        if verdict is Verdict.GOOD:
            self._move(Move.PROBE_GOOD)
            self._bad_in_a_row = self._ejections = 0
        elif verdict is Verdict.BAD:
            self._eject(Move.PROBE_BAD, now)
        else:
            self._move(Move.PROBE_VOID)

    def _eject(self, move: Move, now: float) -> None:
        self._move(move)
        self._ejections += 1
        self._bad_in_a_row = 0
        self.until = now + self._eject_s * min(self._ejections, MAX_EJECT_FACTOR)

    def _move(self, move: Move) -> None:
        try:
            self.state = TRANSITIONS[self.state, move]
        except KeyError:
            raise IllegalMove("breaker", self.state, move) from None
        self._term += 1
