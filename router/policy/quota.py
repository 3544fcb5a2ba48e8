"""What a provider lets us do, predicted from what its responses say, so that a request is routed before it is refused.

Each limit that a provider tells of (requests, tokens, input, output; a minute, a day) is a `Meter`: a leaky bucket, the
other form of the Generic Cell Rate Algorithm. Its level is what was used and has not drained. A response sets it:

    level = limit - remaining + what we have sent that the response can't know of
    drain = limit / window,    window = limit x reset / (limit - remaining)

and between responses our own requests raise it, as large as they are predicted, and are corrected when they end. What a
response can't know of is told by order, not by clocks: requests that were sent after the one it answers, and what those
under way will still write. A response to an older request than one already heard says nothing new and is dropped.

Some limits are windows that end at once instead of draining. They show when less remains and yet the reset comes
sooner, which no bucket does; then nothing drains before the window's end.

No prediction is exact, so more room is asked for than a request is thought to need: `_slack` times as much, raised by
each refusal and lowered by each answer so that one request in two hundred is refused in the long run. It costs some of
the burst and nothing of the rate.

A provider that tells nothing has no meters, and after a few answers isn't counted any more.

Source: ATM Forum, Traffic Management 4.1 (the two forms of GCRA); H. Robbins, S. Monro, "A Stochastic Approximation
Method", 1951 (the slack).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from msgspec import Struct

from router.config.schema import Counts
from router.counting import RESOURCES, Charge, Need, charge
from router.errors import IllegalMove
from router.ratelimits import Reading, Spent

MINUTE_S = 60.0
"""The window of a limit whose response names none: requests and tokens a minute are what nearly all of them sell."""
WINDOWS_S = {
    "second": 1.0, "": MINUTE_S, "hour": 3600.0, "day": 86_400.0, "month": 2_592_000.0,
}  # fmt: skip
LEAST_WINDOW_S = 0.1
MOST_WINDOW_S = 2_678_400.0
"""31 days; what is outside is nonsense."""
RESOLUTION_S = 2.5
"""Resets are told in whole seconds, or as dates on clocks that tick so: two of them differ by less by chance."""
MOST_UNITS = 10**15
"""More than any limit is; a larger number is nonsense."""
SILENT = 8
"""Answers without a word of limits after which a provider isn't counted: it would have said something."""
FORGET_S = 3600.0
"""A limit that wasn't told for an hour is no longer known: accounts are upgraded."""
SLACK, MOST_SLACK = 1.25, 3.0
REFUSED, ANSWERED = 1.2, 0.999
"""Factors of the slack; ln(1/0.999) / ln(1.2) is 0.55 %, the share of refusals at which it stands still."""
PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
"""After a refusal that doesn't say for how long: doubled by each in a row."""
HAIR = 1e-3
"""Of a unit: more than sums of floats are off, less than anybody counts."""


class Meter:
    """One limit."""

    __slots__ = ("_at", "_ends", "_fixed", "_level", "_remaining", "_reset_s", "limit", "window_s")

    def __init__(self, window_s: float) -> None:
        """``window_s``: how long the whole limit takes to drain, until a response shows it."""
        self.limit = 0
        self.window_s = window_s
        self._level = 0.0
        self._at = 0.0
        self._fixed = False
        self._ends = 0.0
        """Of a window that doesn't drain: when it is over."""
        self._remaining: int | None = None
        self._reset_s = 0.0

    def level(self, now: float) -> float:
        """Units used that have not come back."""
        if self._fixed:
            return self._level if now < self._ends else 0.0
        return max(0.0, self._level - (now - self._at) * self.limit / self.window_s)

    def room(self, now: float) -> float:
        """Units that fit now; never negative."""
        return max(0.0, self.limit - self.level(now))

    def wait_s(self, units: float, now: float) -> float:
        """How long until ``units`` fit, or all there is where they are more than that."""
        if units <= self.limit - self._level:
            return 0.0  # It would fit even if nothing had drained.
        missing = min(units, self.limit) - (self.limit - self.level(now))
        if missing <= HAIR:
            return 0.0
        return self._ends - now if self._fixed else missing * self.window_s / self.limit

    def reset_s(self, now: float) -> float:
        """How long until it is whole, if nothing more is sent."""
        if self._fixed:
            return max(0.0, self._ends - now)
        return self.level(now) * self.window_s / self.limit

    def add(self, units: float, now: float) -> None:
        """So many more are used; negative gives back, never more than there is."""
        self._level = max(0.0, self.level(now) + units)
        self._at = now
        if self._fixed and now >= self._ends:
            self._ends = now + self.window_s

    def unspent(self, units: float, since: float, now: float) -> float:
        """How many of ``units`` taken then can be given back: what has drained is past."""
        if self._fixed:
            return units if now < self._ends and since >= self._ends - self.window_s else 0.0
        return max(0.0, units - (now - since) * self.limit / self.window_s)

    def exhaust(self, now: float) -> None:
        """It must be full: a request was refused."""
        self.add(max(0.0, self.limit - self.level(now)), now)

    def hear(self, reading: Reading, unknown: int, now: float) -> None:
        """A response told of it. ``unknown``: units that the response can't have counted."""
        remaining = reading.remaining
        assert remaining is not None, "asked of readings that say it"
        limit = reading.limit if reading.limit is not None else max(self.limit, remaining)
        used = max(0, limit - remaining)
        if reading.reset_s is not None:
            self._learn(remaining, limit, used, reading.reset_s, now)
        self.limit = limit
        self._level = float(used + unknown)
        self._at = now

    def _learn(self, remaining: int, limit: int, used: int, reset_s: float, now: float) -> None:
        """How it comes back: how fast, or when."""
        first = self._remaining is None
        if self._remaining is not None and limit == self.limit:
            if remaining <= self._remaining and reset_s < self._reset_s - RESOLUTION_S:
                self._fixed = True
            elif remaining < self._remaining and reset_s > self._reset_s and now < self._ends:
                self._fixed = False
        if self._fixed:
            self.window_s = max(self.window_s, reset_s)
        elif used and reset_s > 0:
            shown = min(max(limit * reset_s / used, LEAST_WINDOW_S), MOST_WINDOW_S)
            # The longer the reset, the less its rounding matters.
            trust = 1.0 if first else reset_s / (reset_s + 1.0)
            self.window_s += trust * (shown - self.window_s)
        self._ends = now + reset_s
        self._remaining, self._reset_s = remaining, reset_s


class Gauge(Struct, frozen=True):
    """A limit as people and metrics see it."""

    resource: str
    limit: int
    remaining: int
    reset_s: float


class Hold:
    """Units reserved for one request."""

    __slots__ = ("charge", "counted", "heard", "limit", "order", "settled", "since")

    def __init__(self, charge: Charge, limit: int | None, order: int, since: float) -> None:
        self.charge = charge
        self.limit = limit
        self.order = order
        """Of sending."""
        self.since = since
        self.counted = False
        """A response that knew of it has been heard."""
        self.heard = False
        """Its own response told of limits."""
        self.settled = False


class Quota:
    """The limits of one target. ``now`` is monotonic seconds everywhere."""

    __slots__ = (
        "_ended", "_forgotten", "_heard_at", "_heard_of", "_later", "_meters", "_open", "_order", "_silent",
        "_slack", "_unknown", "closed_until", "counting", "counts", "deferrals", "knows", "refusals",
    )  # fmt: skip

    def __init__(self, counts: Counts = "usage") -> None:
        self.counts = counts
        self.counting = True
        """Whether requests are reserved: false of a provider that tells nothing."""
        self.knows = False
        """Whether it could make a request wait."""
        self.closed_until = 0.0
        self.deferrals: dict[str, int] = {}
        """Choices that passed its target over, by the limit that would have let the request through last; ``unknown``
        after a refusal that named none.
        """
        self._meters: dict[str, tuple[int, Meter]] = {}
        """By name: the resource's place in a charge, and the meter."""
        self._order = 0
        self._heard_of = 0
        """The latest request whose response was heard."""
        self._heard_at = 0.0
        self._open: OrderedDict[Hold, None] = OrderedDict()
        """Sent after that one, in their order."""
        self._unknown = [0, 0, 0, 0]
        """What those took at once."""
        self._later = [0, 0, 0, 0]
        """What all under way will be charged in time, and those in `_ended`."""
        self._ended: deque[tuple[int, Charge]] = deque()
        """Settled, but not before every response to come was sent: the last request sent by then, and its charge."""
        self._forgotten = 0
        """Requests up to that one were reserved before the provider was found silent, and are no longer counted."""
        self._silent = 0
        self.refusals = 0
        """Since the last answer."""
        self._slack = SLACK

    # Asking

    def wait_s(self, need: Need, now: float) -> float:
        """How long until a request fits: 0 where it does, or where nothing is known."""
        wait = self.closed_until - now if now < self.closed_until else 0.0
        if self._meters:
            charge = need.charge(self.counts)
            at_once, later = charge.at_once, charge.later
            for kind, meter in self._meters.values():
                units: float = at_once[kind] + later[kind]
                late = meter.wait_s(units * self._slack if kind else units, now)
                if late:
                    wait = max(wait, late)
        return wait

    def defer(self, need: Need, now: float) -> None:
        """A request that doesn't fit goes elsewhere, or waits."""
        charge = need.charge(self.counts)
        waits = {
            name: meter.wait_s(charge.at_once[kind] + charge.later[kind], now)
            for name, (kind, meter) in self._meters.items()
        }
        waits["unknown"] = self.closed_until - now
        last = max(waits, key=waits.__getitem__)
        self.deferrals[last] = self.deferrals.get(last, 0) + 1

    def headroom(self, now: float) -> float:
        """Share of the scarcest limit that is left, 0 to 1."""
        if now < self.closed_until:
            return 0.0
        left = 1.0
        for _, meter in self._meters.values():
            left = min(left, meter.room(now) / meter.limit)
        return left

    def gauges(self, now: float) -> tuple[Gauge, ...]:
        """Every limit that is known."""
        return tuple(
            Gauge(name, meter.limit, int(meter.room(now)), meter.reset_s(now))
            for name, (_, meter) in self._meters.items()
        )

    # Sending

    def reserve(self, need: Need, now: float) -> Hold | None:
        """Take what a request is thought to need, until it is settled; None where nobody counts."""
        if not self.counting:
            return None
        if self._meters and now - self._heard_at > FORGET_S:
            self._meters.clear()
            self.knows = False
        self._order += 1
        hold = Hold(need.charge(self.counts), need.limit, self._order, now)
        self._open[hold] = None
        self._count(self._unknown, hold.charge.at_once, 1)
        self._count(self._later, hold.charge.later, 1)
        for kind, meter in self._meters.values():
            meter.add(hold.charge.at_once[kind] + hold.charge.later[kind], now)
        return hold

    def settle(self, hold: Hold, spent: Spent | None, now: float) -> None:
        """The request is over and took ``spent``; None where nobody said, then it took what was thought.

        Raises IllegalMove the second time.
        """
        if hold.settled:
            raise IllegalMove("quota", "settled", "settle")
        hold.settled = True
        if hold.order <= self._forgotten:
            return
        was = hold.charge
        took = was if spent is None else self._took(hold, spent)
        if spent is not None and self._meters:
            self._correct(hold, was, took, now)
        self._count(self._later, was.later, -1)
        if hold.counted:
            self._ended.append((self._order, took))
            self._count(self._later, took.later, 1)
        else:
            del self._open[hold]
            self._count(self._unknown, was.at_once, -1)
        if spent is not None and took.at_once[0]:
            self.refusals = 0
            self._note_silence(hold)

    def _took(self, hold: Hold, spent: Spent) -> Charge:
        if not (spent.input_tokens or spent.output_tokens):
            return Charge((0, 0, 0, 0), (0, 0, 0, 0))
        return charge(
            self.counts, spent.input_tokens, spent.output_tokens, hold.limit, spent.cached_tokens
        )

    def _correct(self, hold: Hold, was: Charge, took: Charge, now: float) -> None:
        for kind, meter in self._meters.values():
            more: float = took.later[kind] - was.later[kind]
            taken = was.later[kind]
            if not hold.counted:
                more += took.at_once[kind] - was.at_once[kind]
                taken += was.at_once[kind]
            if more < 0:
                more = -min(-more, meter.unspent(taken, hold.since, now))
            meter.add(more, now)

    # Hearing

    def hear(self, readings: Sequence[Reading], now: float, hold: Hold | None = None) -> None:
        """A response told of limits; ``hold`` is its request's, None of one that wasn't counted."""
        order = hold.order if hold is not None else self._order
        if hold is not None:
            hold.heard = True
        self.counting, self._silent = True, 0
        if order < self._heard_of:
            return
        self._heard_of, self._heard_at = order, now
        self._slack = max(1.0, self._slack * ANSWERED)
        self._advance(order)
        for reading in readings:
            known = self._meters.get(reading.name)
            if not _is_sane(reading, known[1].limit if known is not None else 0):
                continue
            if known is None:
                meter = Meter(WINDOWS_S.get(reading.window, MINUTE_S))
                known = self._meters[reading.name] = RESOURCES.index(reading.resource), meter
                self.knows = True
            kind, meter = known
            meter.hear(reading, self._unknown[kind] + self._later[kind], now)

    def refused(self, now: float, retry_after_s: float | None, *, told: bool) -> None:
        """A request was refused for a limit. ``told``: its response had readings, which were heard before."""
        self._slack = min(MOST_SLACK, self._slack * REFUSED)
        if (
            retry_after_s is None and now >= self.closed_until
        ):  # What was under way is the same refusal.
            self.refusals += 1
            pause = PAUSE_S * 2 ** min(self.refusals - 1, 10)
            self.closed_until = now + min(MOST_PAUSE_S, pause)
            self.knows = True
        if self._meters and not told:
            scarcest = min(
                (meter for _, meter in self._meters.values()),
                key=lambda one: one.room(now) / one.limit,
            )
            scarcest.exhaust(now)

    def answered(self) -> None:
        """A request that wasn't counted was answered: refusals from now on are no more in a row with earlier ones."""
        self.refusals = 0

    # Keeping count

    def _advance(self, order: int) -> None:
        """A response to the request of that order was heard: those up to it are counted in it."""
        opened, ended = self._open, self._ended
        while opened:
            hold = next(iter(opened))
            if hold.order > order:
                break
            del opened[hold]
            hold.counted = True
            self._count(self._unknown, hold.charge.at_once, -1)
        while ended and ended[0][0] < order:
            self._count(self._later, ended.popleft()[1].later, -1)

    def _note_silence(self, hold: Hold) -> None:
        """An answer ended; of a provider that never tells anything nothing is counted from now on."""
        if hold.heard or self._meters:
            return
        self._silent += 1
        if self._silent >= SILENT:
            self.counting = False
            self._forgotten = self._order
            self._open.clear()
            self._ended.clear()
            self._unknown, self._later = [0, 0, 0, 0], [0, 0, 0, 0]

    @staticmethod
    def _count(sums: list[int], units: Sequence[int], sign: int) -> None:
        for kind, count in enumerate(units):
            sums[kind] += sign * count


def _is_sane(reading: Reading, known: int) -> bool:
    """It says how much is left of how much (``known``: the limit until now, 0 for none), and the numbers can be."""
    remaining, limit, reset_s = reading.remaining, reading.limit, reading.reset_s
    if remaining is None or not 0 <= remaining <= MOST_UNITS:
        return False
    if reset_s is not None and not 0 <= reset_s <= MOST_WINDOW_S:
        return False
    return 0 < (limit if limit is not None else max(known, remaining)) <= MOST_UNITS
