"""Stop strings, found in an answer as it grows, with the log-probabilities of what is kept.

Text that may turn out to be the beginning of a stop string waits, together with its tokens; so none of a stop string
is ever sent, and no token is lost. llama.cpp looks for stop strings too, but drops the tokens of text that waited.

A token that the stop string begins within is kept up to there: then the tokens' bytes are the answer's.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from engines.base import TokenLogprob

Tokens = tuple[TokenLogprob, ...]


class Kept(Struct, frozen=True):
    """What can be sent."""

    text: str = ""
    tokens: Tokens = ()


class StopText:
    """Looks for stop strings in one choice's text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._waiting: list[Kept] = []
        self.stopped = False

    def feed(self, text: str, tokens: Tokens = ()) -> Kept:
        """Return what can be sent now that ``text`` has come; nothing after a stop string."""
        if self.stopped:
            return Kept()
        self._waiting.append(Kept(text, tokens))
        waiting = "".join(piece.text for piece in self._waiting)
        found = [at for stop in self._stops if (at := waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found), cut=True)
        return self._take(len(waiting) - self._held(waiting), cut=False)

    def flush(self) -> Kept:
        """Return what waited; the answer is over."""
        rest, self._waiting = self._waiting, []
        return _joined(rest)

    def _held(self, text: str) -> int:
        """How much of the end of ``text`` could be the beginning of a stop string."""
        sizes = (
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _take(self, size: int, *, cut: bool) -> Kept:
        """Take the pieces within the first ``size`` characters; ``cut`` takes a part of the next one, too."""
        taken: list[Kept] = []
        while self._waiting and len(self._waiting[0].text) <= size:
            piece = self._waiting.pop(0)
            size -= len(piece.text)
            taken.append(piece)
        if cut and size and self._waiting:
            taken.append(_beginning(self._waiting[0], size))
        return _joined(taken)


def _joined(pieces: list[Kept]) -> Kept:
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Kept("".join(piece.text for piece in pieces), tokens)


def _beginning(piece: Kept, size: int) -> Kept:
    """The first ``size`` characters of a piece, and the tokens that wrote them."""
    text = piece.text[:size]
    left = len(text.encode())
    tokens: list[TokenLogprob] = []
    for token in piece.tokens:
        data = bytes(token.bytes or ())[:left]
        if not data:
            break
        left -= len(data)
        tokens.append(replace(token, token=data.decode(errors="replace"), bytes=tuple(data)))
    return Kept(text, tuple(tokens))
