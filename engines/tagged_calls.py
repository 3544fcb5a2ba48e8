"""Tool calls in a model's own words: text, and after it calls between ``<tool_call>`` and ``</tool_call>``."""

from __future__ import annotations

from engines.base import ToolCallDelta
from engines.forced_tools import CallWriter

START = "<tool_call>"


class TaggedCalls:
    """Tells one choice's text from its calls as it grows; what may be the beginning of a tag waits."""

    def __init__(self) -> None:
        self._held = ""
        self._calls: CallWriter | None = None

    @property
    def called(self) -> bool:
        """Whether a call has begun."""
        return self._calls is not None

    def feed(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Return the text and the pieces of calls that ``text`` adds."""
        if self._calls is not None:
            return "", self._calls.feed(text)
        self._held += text
        at = self._held.find(START)
        if at >= 0:
            before, after = self._held[:at], self._held[at + len(START) :]
            self._calls, self._held = CallWriter(), ""
            return before.rstrip("\n"), self._calls.feed(after)
        size = next(
            size for size in range(len(START) - 1, -1, -1) if self._held.endswith(START[:size])
        )
        sure = len(self._held) - size
        sent, self._held = self._held[:sure], self._held[sure:]
        return sent, ()

    def flush(self) -> str:
        """Return what waited; the answer is over."""
        held, self._held = self._held, ""
        return held
