"""Whose turn it is: all lines of a pool, and who of those who wait is given a target that can take a request more.

A lease is taken for the one it is given to, here and now, so whoever is served holds it before anybody else can ask,
and as many are served as there is room for: nobody is woken to find that he came too late. Targets are shared by
models, so of the lanes that wait for one, of whichever line, the one with the first head comes first.

A head that can't be served stops its own lane and no other. Nothing is polled: room comes of a settled lease or of a
target that is available again (`freed`), or at a moment that the refusal told (`due`). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heapreplace

from router.line import Lane, Place
from router.load import Facts
from router.pool import Refusal, Route
from router.target import Lease, Target


class Waiting(Place):
    """A request's place in line, and what it asks for."""

    __slots__ = ("facts", "left", "route", "tried")

    def __init__(
        self,
        key: tuple[int, float, int],
        route: Route,
        tried: set[Target],
        facts: Facts | None,
        left: Callable[[], bool],
    ) -> None:
        """``key``: priority, arrival in monotonic seconds, a unique number. ``left``: it no longer wants a lease."""
        super().__init__(route.line, *key)
        self.route = route
        self.tried = tried
        self.facts = facts
        self.left = left


Served = tuple[Waiting, Lease]


class Turns:
    """The lines of one pool. ``now`` is monotonic seconds."""

    __slots__ = ("_due", "_on_free", "_wanted", "_why")

    def __init__(self, on_free: Callable[[Target, float], None]) -> None:
        """``on_free`` is set on targets that somebody waits for, and calls `freed`."""
        self._on_free = on_free
        self._wanted: dict[Target, dict[Lane, None]] = {}
        self._why: dict[Lane, Refusal] = {}
        """What lanes were refused with when they were last tried."""
        self._due: dict[Lane, float] = {}
        """When that changes without anybody saying so, where it does."""

    @property
    def due_at(self) -> float:
        """When `due` has something to do; infinite if never."""
        return min(self._due.values(), default=float("inf"))

    def ahead(
        self, route: Route, tried: set[Target], priority: int, arrived_at: float
    ) -> Refusal | None:
        """Why those wait who wait for the same targets, if any of them comes before a request of ``arrived_at``."""
        lane = route.line.lanes.get(_targets(route, tried))
        head = lane.head() if lane is not None else None
        if lane is None or head is None or head.key[:2] > (-priority, arrived_at):
            return None
        return self._why.get(lane) or Refusal("full", float("inf"))

    def stand(self, place: Waiting, now: float) -> list[Served]:
        """Let a place of the line wait for all targets that it hasn't tried; who is served now, perhaps itself."""
        freed = self._step_out(place)
        targets = _targets(place.route, place.tried)
        if not targets:
            return self._pass(freed, now)
        lane = place.line.lanes.get(targets)
        if lane is None:
            lane = place.line.lanes[targets] = Lane(place.line, targets)
            for target in targets:
                self._want(target, lane)
        lane.add(place)
        return self._pass([*freed, lane] if lane.head() is place else freed, now)

    def leave(self, place: Waiting, now: float) -> list[Served]:
        """Let it go without a target; who is served now because it stood in the way."""
        freed = self._step_out(place)
        place.line.leave(place, now, served=False)
        return self._pass(freed, now)

    def freed(self, target: Target, now: float) -> list[Served]:
        """``target`` may take a request more: those it goes to."""
        return self._pass(self._wanted.get(target, ()), now, target)

    def due(self, now: float) -> list[Served]:
        """The time has come that refusals told: those who are served now."""
        return self._pass((), now)

    def _pass(
        self, lanes: Iterable[Lane], now: float, target: Target | None = None
    ) -> list[Served]:
        """Serve the heads of ``lanes`` in order until none can be; with ``target``, until that is full.

        Lanes whose time has come take part: what they wait for is free now, too.
        """
        due = [lane for lane, at in self._due.items() if at <= now]
        if due:
            lanes, target = {*lanes, *due}, None
        heads = [(head.key, lane) for lane in lanes if (head := lane.head()) is not None]
        heapify(heads)
        served: list[Served] = []
        while heads and not (target is not None and target.full):
            lane = heads[0][1]
            place = lane.head()
            assert isinstance(place, Waiting), "lanes that have nobody left are taken out below"
            if place.left():
                self._step_out(place)
                place.line.leave(place, now, served=False)
            else:
                lease = place.route.lease(now, place.tried, place.facts)
                if isinstance(lease, Refusal):
                    self._put_off(lane, lease, now)
                    heappop(heads)
                    continue
                self._step_out(place)
                place.line.leave(place, now, served=True)
                served.append((place, lease))
            head = lane.head()
            if head is None:
                heappop(heads)
            else:
                heapreplace(heads, (head.key, lane))
        return served

    def _put_off(self, lane: Lane, why: Refusal, now: float) -> None:
        """Try the lane again when the refusal says, if that is a moment to come; room may come before."""
        self._why[lane] = why
        if why.reason != "unavailable" and now < why.retry_at < float("inf"):
            self._due[lane] = why.retry_at
        else:
            self._due.pop(lane, None)

    def _step_out(self, place: Waiting) -> list[Lane]:
        """Take ``place`` out of its lane; the lane, if it alone may have kept those behind it waiting."""
        lane = place.lane
        if lane is None:
            return []
        was_head = lane.head() is place
        lane.remove(place)
        if not lane.waiting:
            del lane.line.lanes[lane.targets]
            self._why.pop(lane, None)
            self._due.pop(lane, None)
            for target in lane.targets:
                self._unwant(target, lane)
            return []
        return [lane] if was_head and lane in self._due else []

    def _want(self, target: Target, lane: Lane) -> None:
        self._wanted.setdefault(target, {})[lane] = None
        target.on_free = self._on_free

    def _unwant(self, target: Target, lane: Lane) -> None:
        lanes = self._wanted[target]
        del lanes[lane]
        if not lanes:
            del self._wanted[target]
            target.on_free = None


def _targets(route: Route, tried: set[Target]) -> frozenset[Target]:
    return frozenset(one.target for one in route.members if one.target not in tried)
