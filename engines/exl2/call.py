"""One request on the event loop: the worker's tokens become its choices' text, calls and log-probabilities.

A choice's tokens are bytes, its bytes are text as soon as they are whole characters, and its text goes through what
every engine's text goes through: thoughts, tool calls, stop strings. A stop string is found here, a step or two after
its tokens were sampled; what was sampled beyond it is neither sent nor counted.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from engines.base import (
    Delta,
    EngineError,
    Event,
    Finish,
    FinishReason,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from engines.choice_writer import ChoiceWriter, Form
from engines.exl2.steering import Noted
from engines.exl2.vocabulary import Tokens
from engines.exl2.worker import Choice, Refused, Step
from engines.thoughts import Thoughts


class Shown(Struct, frozen=True):
    """How a request's tokens are to be shown."""

    form: Form
    thinks: bool = False
    """The model may think aloud in tags."""
    thinking: bool = False
    """Its prompt ends within a thought."""
    logprobs: bool = False


class Call:
    """A request, its choices and the way of its events to whoever reads them. Lives on the event loop."""

    def __init__(self, shown: Shown, tokens: Tokens, input_tokens: int) -> None:
        self.choices: list[Choice] = []
        self.left = 0
        """Choices that the worker still has."""
        self._shown = shown
        self._tokens = tokens
        self._input_tokens = input_tokens
        self._texts: list[_ChoiceText] = []
        self._events: list[Event] = []
        self._ready = asyncio.Event()
        self._error: EngineError | None = None
        self._over = False

    def begin(self, choices: Sequence[Choice]) -> None:
        """Take the choices that were submitted."""
        self.choices = list(choices)
        self.left = len(choices)
        self._texts = [_ChoiceText(self._shown, self._tokens) for _ in choices]

    def step(self, step: Step, cancel: Callable[[Choice], None]) -> None:
        """Take what an iteration brought; ``cancel`` stops a choice at the worker."""
        choice = step.choice
        if step.ended is not None:
            self.left -= 1
        text = self._texts[choice.index]
        if text.finished or self._over:
            return
        events, stopped = text.feed(step)
        if choice.steering is not None and choice.steering.error is not None:
            self.fail(EngineError("invalid", choice.steering.error))
            return
        self._events += [replace(event, choice=choice.index) for event in events]
        if stopped and step.ended is None:
            cancel(choice)
        if all(one.finished for one in self._texts):
            self._events.append(self._usage())
            self._over = True
        if self._events:
            self._ready.set()

    def refused(self, refused: Refused) -> None:
        """The library didn't take a choice."""
        self.left -= 1
        self.fail(EngineError("internal", f"exllamav2 refused the request: {refused.reason}"))

    def fail(self, error: EngineError) -> None:
        """Nothing more will come."""
        self._error = self._error or error
        self._over = True
        self._ready.set()

    async def batch(self) -> list[Event]:
        """Wait for the events since the last look; none when all is said. Raises EngineError."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._over:
                return []
            self._ready.clear()
            await self._ready.wait()
        events, self._events = self._events, []
        return events

    def _usage(self) -> Usage:
        texts = self._texts
        return Usage(
            self._input_tokens,
            sum(text.count for text in texts),
            min(text.cached_tokens for text in texts),
        )


class _ChoiceText:
    """One choice's tokens on their way to deltas."""

    def __init__(self, shown: Shown, tokens: Tokens) -> None:
        self.count = 0
        self.cached_tokens = 0
        self.finished = False
        self._tokens = tokens
        self._shown = shown
        self._writer = ChoiceWriter(shown.form)
        self._thoughts = Thoughts(inside=shown.thinking) if shown.thinks else None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._owed: list[TokenLogprob] = []
        """Of bytes that are no whole character yet."""

    def feed(self, step: Step) -> tuple[list[Event], bool]:
        """Return the events, and whether a stop string ended the choice."""
        self.cached_tokens = step.cached_tokens
        ends_turn = step.ended == "stop"
        noted = iter(step.noted)
        events: list[Event] = []
        for at, token in enumerate(step.tokens):
            self.count += 1
            note = next(noted, None)
            if ends_turn and at == len(step.tokens) - 1:
                break
            delta = self._delta(token, note)
            if delta.text or delta.tool_calls or delta.reasoning:
                events.append(delta)
            if self._writer.stopped:
                events.append(Finish(0, "stop"))
                self.finished = True
                return events, True
        if step.ended is not None:
            rest = self._rest()
            if rest.text or rest.tool_calls or rest.reasoning:
                events.append(rest)
            stopped = ends_turn or self._writer.stopped
            events.append(Finish(0, self._reason(stopped=stopped)))
            self.finished = True
        return events, False

    def _delta(self, token: int, note: Noted | None) -> Delta:
        hidden = token in self._tokens.hidden
        data = b"" if hidden else self._tokens.bytes[token]
        if note is not None and self._shown.logprobs and not hidden:
            self._owed.append(self._logprob(note, data))
        text = self._decoder.decode(data)
        if not text:
            return Delta(0)
        reasoning = ""
        if self._thoughts is not None:
            reasoning, text = self._thoughts.feed(text)
            if self._thoughts.inside:
                self._owed = []  # thoughts have no log-probabilities
            if not text:
                return Delta(0, reasoning=reasoning)
        logprobs, self._owed = tuple(self._owed), []
        return replace(self._writer.feed(text, logprobs), reasoning=reasoning)

    def _rest(self) -> Delta:
        """What waited. Bytes that never became a character are dropped, and their log-probabilities with them."""
        reasoning, text = ("", "") if self._thoughts is None else self._thoughts.flush()
        owed = tuple(self._owed) if text else ()
        delta = self._writer.feed(text, owed) if text else Delta(0)
        last = self._writer.flush()
        return replace(
            last,
            text=delta.text + last.text,
            logprobs=delta.logprobs + last.logprobs,
            tool_calls=delta.tool_calls + last.tool_calls,
            reasoning=reasoning,
        )

    def _reason(self, *, stopped: bool) -> FinishReason:
        if not stopped:
            return "length"
        form = self._shown.form
        if form.forced is not None:
            return form.forced.reason
        return "tool_calls" if self._writer.called else "stop"

    def _logprob(self, note: Noted, data: bytes) -> TokenLogprob:
        tokens = self._tokens
        top = tuple(
            TopLogprob(tokens.name(id_), logprob, tuple(tokens.bytes[id_]))
            for id_, logprob in note.top
        )
        return TokenLogprob(tokens.name(note.token), note.logprob, tuple(data), top)
