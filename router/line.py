"""The order of those who wait for one model: by priority, then by arrival. Pure bookkeeping, bounded.

A line has lanes: those whom the same targets may serve stand in one, so whoever waits for a busy target doesn't stop
those behind that another could take. Within a lane nobody overtakes. Who waits before trying again (backoff) has a
place in the line but stands in no lane until then.

Priorities are strict, without aging: whoever sets them means that the higher one never waits for the lower. Nobody
starves in silence all the same, as a wait ends after the line's ``max_wait_s`` with an error that says when to
come back.

Joining, leaving and finding the first or the last cost O(log n): heaps, in which those who left stay until they come
up or are the most.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from router.policy.drain import Drain
from router.target import Target

Key = tuple[int, float, int]
DEAD = 16
"""Entries of those who left that a heap may always hold: tidying up a short one isn't worth it."""


class Place:
    """Somebody's place in a line."""

    __slots__ = ("key", "lane", "line")

    def __init__(self, line: Line, priority: int, arrived_at: float, number: int) -> None:
        """Higher priorities first; ``number`` is unique and decides between those who came at the same time."""
        self.key: Key = (-priority, arrived_at, number)
        self.line = line
        self.lane: Lane | None = None

    @property
    def priority(self) -> int:
        """Higher goes first; below 0 is sheddable."""
        return -self.key[0]

    def __lt__(self, other: Place) -> bool:
        return self.key < other.key


class Lane:
    """Those of a line who wait for the same targets."""

    __slots__ = ("_heap", "line", "targets", "waiting")

    def __init__(self, line: Line, targets: frozenset[Target]) -> None:
        self.line = line
        self.targets = targets
        self.waiting = 0
        self._heap = _Heap(lambda place: place.lane is self, lambda place: place.key)

    def head(self) -> Place | None:
        """Who is next."""
        return self._heap.first()

    def add(self, place: Place) -> None:
        """Let ``place`` stand here, where its key says."""
        place.lane = self
        self.waiting += 1
        self._heap.push(place, self.waiting)

    def remove(self, place: Place) -> None:
        """Let it go."""
        place.lane = None
        self.waiting -= 1


class Line:
    """Those who wait for one model."""

    __slots__ = ("_heap", "_places", "counts", "drain", "lanes", "max_wait_s", "most", "waiting")

    def __init__(self, most: int, max_wait_s: float) -> None:
        """At most ``most`` wait, nobody longer than ``max_wait_s``."""
        self.most = most
        self.max_wait_s = max_wait_s
        self.waiting = 0
        self.counts: dict[int, int] = {}
        """How many wait, by priority."""
        self.lanes: dict[frozenset[Target], Lane] = {}
        self.drain = Drain()
        self._places: set[Place] = set()
        self._heap = _Heap(self._places.__contains__, _backwards)

    def last_after(self, place: Place) -> Place | None:
        """Who must go for ``place`` to come: nobody while there is room, else whoever would be last."""
        if self.waiting < self.most:
            return None
        last = self._heap.first()
        return place if last is None or last.key < place.key else last

    def join(self, place: Place, now: float) -> None:
        """Give it a place; there must be room."""
        if not self.waiting:
            self.drain.begin(now)
        self.waiting += 1
        self.counts[place.priority] = self.counts.get(place.priority, 0) + 1
        self._places.add(place)
        self._heap.push(place, self.waiting)

    def leave(self, place: Place, now: float, *, served: bool) -> None:
        """It goes, with a target or without."""
        self._places.remove(place)
        self.waiting -= 1
        self.counts[place.priority] -= 1
        if served:
            self.drain.served(now)
        if not self.waiting:
            self.drain.end(now)

    def __contains__(self, place: Place) -> bool:
        return place in self._places

    def places(self) -> tuple[Place, ...]:
        """Everybody, in no order."""
        return tuple(self._places)

    def wait_s(self, priority: int, now: float) -> float:
        """How long somebody who comes now would wait, at the line's pace."""
        ahead = sum(count for other, count in self.counts.items() if other >= priority)
        return (ahead + 1) * self.drain.place_s(now)


def _backwards(place: Place) -> Key:
    priority, arrived_at, number = place.key
    return (-priority, -arrived_at, -number)


class _Heap:
    """Places by a key, the smallest first."""

    __slots__ = ("_entries", "_key", "_stays")

    def __init__(self, stays: Callable[[Place], bool], key: Callable[[Place], Key]) -> None:
        """``stays``: whether a place is still here."""
        self._stays = stays
        self._key = key
        self._entries: list[tuple[Key, Place]] = []

    def push(self, place: Place, living: int) -> None:
        """Add ``place``, the last of ``living``."""
        entries = self._entries
        if len(entries) > 2 * living + DEAD:
            entries[:] = {
                id(entry[1]): entry for entry in entries if self._stays(entry[1])
            }.values()
            heapify(entries)
        heappush(entries, (self._key(place), place))

    def first(self) -> Place | None:
        """The smallest that is still here."""
        entries = self._entries
        while entries and not self._stays(entries[0][1]):
            heappop(entries)
        return entries[0][1] if entries else None
