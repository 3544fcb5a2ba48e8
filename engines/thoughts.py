"""What a model thinks before it answers, told from the answer: text between ``<think>`` and ``</think>`` at its start.

For engines whose library doesn't tell the two apart. Some templates open the thought themselves, so that the answer
begins within it.
"""

from __future__ import annotations

START, END = "<think>", "</think>"
"""Of every open model that thinks in its answer."""


class Thoughts:
    """Cuts one choice's text as it grows; what may be part of a tag waits."""

    def __init__(self, *, inside: bool) -> None:
        """``inside``: the prompt has opened the thought."""
        self.inside = inside
        """Whether what came last was thought."""
        self._over = False
        self._held = ""
        self._begun = False
        self._gap = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return what of the text so far is thought, and what is answer."""
        if self._over:
            return "", self._answered(text)
        self._held += text
        if not self.inside and not self._open():
            return "", self._answer()
        thought, found, rest = self._held.partition(END)
        if found:
            self._over, self._held, self.inside = True, "", False
            self._gap = True
            return self._trimmed(thought.rstrip()), self._answered(rest)
        sure = len(self._held) - _held_back(self._held, END)
        thought, self._held = self._held[:sure], self._held[sure:]
        return self._trimmed(thought), ""

    def flush(self) -> tuple[str, str]:
        """Return what waited; the answer is over."""
        held, self._held = self._held, ""
        return (held, "") if self.inside else ("", held)

    def _open(self) -> bool:
        """Whether the text begins with a thought."""
        begun = self._held.lstrip()
        if begun.startswith(START):
            self.inside, self._held = True, begun.removeprefix(START)
        return self.inside

    def _answer(self) -> str:
        """Return the text where no thought can come any more."""
        if START.startswith(self._held.lstrip()[: len(START)]):
            return ""
        self._over = True
        text, self._held = self._held, ""
        return text

    def _answered(self, text: str) -> str:
        """Return the answer's text without the empty lines after a thought."""
        if self._gap:
            text = text.lstrip("\n")
            self._gap = not text
        return text

    def _trimmed(self, thought: str) -> str:
        if not self._begun:
            thought = thought.lstrip("\n")
            self._begun = bool(thought)
        return thought


def _held_back(text: str, tag: str) -> int:
    return next(size for size in range(len(tag) - 1, -1, -1) if text.endswith(tag[:size]))
