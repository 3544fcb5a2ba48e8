"""Where a broken answer and what another model writes after it meet: what of the second text is the first's rest. Pure.

A model that is shown the beginning of an answer goes on from it, repeats its end, starts it anew, or answers as if
nothing had been said. Where it is known to go on exactly, nothing is judged. Else the text alone must tell:

- a beginning that repeats the end of what was said, or all of it, is left out;
- one that follows what was said from its beginning and then leaves it is a second answer;
- a capital where no sentence can begin (``the quickSure``) is a second answer, too: models begin those with one.

Everything else goes on. The text is held back only while it stands in what was said, word for word, or while it is
only marks or the white space that stood at the seam. docs/decisions says why these rules and what they miss.
"""

from __future__ import annotations

LEAST_REPEAT = 4
"""Characters that are left out as a repetition. Fewer come about by chance: ``hel`` and ``lo``."""
LOOP = 64
"""Longer repetitions are looked at no further; shorter ones may be a text that repeats itself (``ha ha ha``)."""
LEAST_RESTART = 16
"""Characters from the beginning that are no chance any more: two or three words."""
_LEADS = "#*> "
"""What Markdown puts before a line's first letter."""
_CLOSERS = frozenset(".,;:!?…)]}")
"""Marks that a space follows."""


class Diverges(Exception):  # noqa: N818 - names the event
    """It is another answer, not the rest of this one."""


class Seam:
    """The end of what was said, waiting for its rest."""

    def __init__(self, said: str, *, exact: bool, trimmed: bool) -> None:
        """``exact``: whoever writes on does so from the next character. ``trimmed``: but wasn't shown the white space
        that ``said`` ends with, so that it writes that again, or its own.
        """
        self._shown = said.rstrip() if trimmed else said
        self._space = said[len(self._shown) :]
        self._exact = exact

    def judge(self, text: str, *, ended: bool) -> int | None:
        """How many characters of ``text``, all that has come, are to be left out; None: not to be told yet.

        ``ended``: no more will come before something else does. Raises Diverges.
        """
        repeat = 0
        if self._shown and not self._exact:
            if not ended and (text in self._shown or not text.lstrip(_LEADS)):
                return None
            repeat = self._repeat(text)
            if not repeat:
                self._check(text)
        return self._after_space(text, repeat, ended=ended)

    def _after_space(self, text: str, repeat: int, *, ended: bool) -> int | None:
        space, rest = self._space, text[repeat:]
        if not space or rest.startswith(space):
            return repeat + len(space)
        word = rest.lstrip()
        if not word and not ended and space.startswith(rest):
            return None
        return len(text) - len(word)

    def _repeat(self, text: str) -> int:
        size = overlap(self._shown, text)
        if size == len(self._shown):
            return size
        return 0 if size < LEAST_REPEAT or self._loops(text[:size]) else size

    def _loops(self, text: str) -> bool:
        if len(text) >= LOOP:
            return False
        periods = range(1, len(text) // 2 + 1)
        return self._shown.endswith(text * 2) or any(text[p:] == text[:-p] for p in periods)

    def _check(self, text: str) -> None:
        said, word = self._shown.lstrip(), text.lstrip()
        if word[:LEAST_RESTART] == said[:LEAST_RESTART] and len(word) >= LEAST_RESTART:
            raise Diverges
        first = text.lstrip(_LEADS)[:1]
        if not text or text[0].isspace() or not first.isupper():
            return
        last = said[-1]
        if self._space or last in _CLOSERS or (last.isalnum() and not last.isupper()):
            raise Diverges


def overlap(said: str, text: str) -> int:
    """How many characters the longest end of ``said`` has that ``text`` begins with.

    Source: Knuth, Morris and Pratt, "Fast pattern matching in strings" (1977).
    """
    text = text[: len(said)]
    fallback = [0] * len(text)
    size = 0
    for at in range(1, len(text)):
        while size and text[at] != text[size]:
            size = fallback[size - 1]
        size += text[at] == text[size]
        fallback[at] = size
    size = 0
    for char in said[len(said) - len(text) :]:
        while size and (size == len(text) or char != text[size]):
            size = fallback[size - 1]
        size += bool(text) and char == text[size]
    return size
