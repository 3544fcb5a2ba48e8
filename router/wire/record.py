"""What a stream has said, kept to go on from or to be counted, in little memory. Pure.

Events that differ in their texts alone (`wire.alike`) take what their texts do; everything comes out as it went in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

FOLD = 32
"""Texts that are put together at a time: each takes 40 bytes by itself, and its length when it is put together."""

Around = tuple[bytes, bytes]


class Record:
    """One stream's."""

    __slots__ = ("_around", "_drop", "_items", "_limit", "_size", "texts")

    def __init__(self, limit_bytes: int, drop: Callable[[bytes], None] | None = None) -> None:
        """Above ``limit_bytes`` nothing is kept. ``drop`` is called with what is not, in pieces of whole events."""
        self._limit = limit_bytes
        self._drop = drop
        self._size = 0
        self._items: list[bytes | tuple[Around, bytes]] = []
        """Events as they came, or what stands around texts, and those, a line each."""
        self._around: Around = (b"", b"")
        self.texts: list[bytes] = []
        """The latest, with their quotes; whoever puts one there calls `fold` where there are `FOLD`."""

    @property
    def whole(self) -> bool:
        """All of it is kept."""
        self.fold()
        return self._size <= self._limit

    def __iter__(self) -> Iterator[bytes]:
        """What is kept, in pieces of whole events."""
        self.fold()
        return map(_unfolded, self._items)

    def add(self, events: bytes) -> None:
        """Whole events."""
        self.fold()
        self._keep(events, len(events))

    def begin(self, head: bytes, tail: bytes) -> None:
        """`texts` that come from now on stand between ``head`` and ``tail``."""
        self.fold()
        self._around = head, tail

    def fold(self) -> None:
        """Put the latest texts together."""
        texts = self.texts
        if texts:
            head, tail = self._around
            joined = b"\n".join(texts)
            texts.clear()
            size = (
                len(joined)
                + joined.count(b"\n") * (len(head) + len(tail) - 1)
                + len(head)
                + len(tail)
            )
            self._keep((self._around, joined), size)

    def _keep(self, item: bytes | tuple[Around, bytes], size: int) -> None:
        self._items.append(item)
        self._size += size
        if self._size > self._limit:
            items, self._items = self._items, []
            if self._drop is not None:
                for one in items:
                    self._drop(_unfolded(one))


def _unfolded(item: bytes | tuple[Around, bytes]) -> bytes:
    if isinstance(item, bytes):
        return item
    (head, tail), texts = item
    return head + texts.replace(b"\n", tail + head) + tail
