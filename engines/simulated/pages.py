"""The pages of a simulated cache: reserved, shared by hash, and kept unused until memory is needed.

A page is private to its request, or shared: known by the hash of the prompt up to its end, with a
count of the requests that hold it. A shared page nobody holds stays as cache and goes when a
reservation needs room, the least recently released first. Hashes are chained, so a page is of use
only together with all before it: a release puts the last page of a prompt at the front of the line
to go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Pages:
    """A fixed number of pages and who holds them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._private = 0
        self._holders: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Pages that some request holds."""
        return self._private + len(self._holders)

    @property
    def cached(self) -> int:
        """Shared pages that nobody holds."""
        return len(self._unused)

    def longest(self, hashes: Sequence[int]) -> int:
        """How many of a prompt's first pages are there."""
        for count, page in enumerate(hashes):
            if page not in self._holders and page not in self._unused:
                return count
        return len(hashes)

    def reserve(self, shared: Sequence[int], private: int) -> bool:
        """Hold these shared pages, which must be there, and so many private ones; all or, False, nothing."""
        awake = sum(page in self._unused for page in shared)
        if self.in_use + awake + private > self.total:
            return False
        for page in shared:
            self._hold(page)
        self._private += private
        self._evict()
        return True

    def adopt(self, page: int) -> bool:
        """Exchange one private page for a shared one, where it is there."""
        if page not in self._holders and page not in self._unused:
            return False
        self._private -= 1
        self._hold(page)
        return True

    def publish(self, page: int) -> None:
        """Make one private page a shared one, held by its request."""
        self._private -= 1
        self._hold(page)

    def release(self, shared: Sequence[int], private: int) -> None:
        """Let go of what a request holds."""
        self._private -= private
        for page in reversed(shared):
            self._holders[page] -= 1
            if not self._holders[page]:
                del self._holders[page]
                self._unused[page] = None

    def _hold(self, page: int) -> None:
        self._unused.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def _evict(self) -> None:
        while self.in_use + len(self._unused) > self.total:
            self._unused.popitem(last=False)
