"""One choice from text to deltas: tool calls cut out, stop strings held back, log-probabilities with their text.

The same for every engine, whatever its text comes from.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from engines.base import Delta, ToolCallDelta
from engines.forced_tools import CallWriter, ForcedCall
from engines.stop_text import StopText, Tokens
from engines.tagged_calls import TaggedCalls


class Form(Struct, frozen=True):
    """What may be found in the text."""

    stop: tuple[str, ...] = ()
    forced: ForcedCall | None = None
    """It is nothing but calls."""
    tagged: bool = False
    """Calls stand in it, in tags."""


class ChoiceWriter:
    """One choice on its way from text to deltas."""

    def __init__(self, form: Form) -> None:
        self._stop = StopText(form.stop) if form.stop else None
        self._forced = CallWriter() if form.forced is not None else None
        self._tagged = TaggedCalls() if form.tagged else None
        self._owed: Tokens = ()
        """Of text that waits in front of the stop strings."""
        self.stopped = False

    @property
    def called(self) -> bool:
        """Whether a call in tags was read."""
        return self._tagged is not None and self._tagged.called

    def feed(self, text: str, tokens: Tokens) -> Delta:
        """Return what the next text adds; its choice is set by the caller."""
        if self._forced is not None:
            return Delta(0, tool_calls=self._forced.feed(text))
        calls: tuple[ToolCallDelta, ...] = ()
        if self._tagged is not None:
            text, calls = self._tagged.feed(text)
        return replace(self._sent(text, tokens), tool_calls=calls)

    def flush(self) -> Delta:
        """Return what waited; the choice is over."""
        text = "" if self._tagged is None else self._tagged.flush()
        delta = self._sent(text, ())
        if self._stop is None or self.stopped:
            return delta
        rest = self._stop.flush()
        return replace(delta, text=delta.text + rest.text, logprobs=delta.logprobs + rest.tokens)

    def _sent(self, text: str, tokens: Tokens) -> Delta:
        """Return what of text can be sent, with its tokens; none where calls have begun."""
        tokens, self._owed = self._owed + tokens, ()
        if not text:
            self._owed = () if self.called else tokens
            return Delta(0)
        if self._stop is None:
            return Delta(0, text, (), tokens)
        kept = self._stop.feed(text, tokens)
        self.stopped = self._stop.stopped
        return Delta(0, kept.text, (), kept.tokens)
