"""From an engine's events to an answer of the older completions endpoint: text that goes on, no messages.

Like `completion`, whose two kinds of writers these are; chunks and the whole object look alike here, and there are no
roles. A bare text has no tool calls and no thoughts: an engine that sends some broke its contract.

``text_offset`` counts characters from the prompt's beginning, echoed or not, as OpenAI's answers do.

Source: OpenAI's published API specification, CreateCompletionResponse.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from engines.base import Delta, Finish, TokenLogprob, Usage
from router.wire.completion import (
    LOWEST_LOGPROB,
    Identity,
    OutOfOrder,
    StreamWriter,
    WholeWriter,
    Writer,
    head,
    usage_of,
)

ID_PREFIX = "cmpl-"
_KIND = b"text_completion"

_encode = msgspec.json.Encoder().encode


class Form(Struct, frozen=True):
    """What the client wants to see."""

    prompts: tuple[str, ...]
    n: int = 1
    """Choices of each prompt; those of the first come first."""
    echo: bool = False
    """The prompt stands before each choice's text."""
    logprobs: bool = False

    @property
    def by_choice(self) -> list[str]:
        """Each choice's prompt."""
        return [prompt for prompt in self.prompts for _ in range(self.n)]


class TextLogprobs(Struct, frozen=True):
    """Log-probabilities of a choice's tokens, column by column."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """The most probable tokens of each place, and the written one if it isn't among them."""
    text_offset: list[int]


def text_writer(identity: Identity, form: Form, *, stream: bool, include_usage: bool) -> Writer:
    """The writer of one answer."""
    if stream:
        return TextChunkEncoder(identity, form, include_usage=include_usage)
    return TextCompletionBuilder(identity, form)


class TextChunkEncoder(StreamWriter):
    """Writes a stream: each choice's prompt (if echoed), its text, its finish."""

    __slots__ = ("_close", "_echo", "_finish", "_logprobs", "_offsets", "_prompts", "_text")

    def __init__(self, identity: Identity, form: Form, *, include_usage: bool = False) -> None:
        self._prompts = form.by_choice
        super().__init__(identity, _KIND, n=len(self._prompts), include_usage=include_usage)
        self._echo = form.echo
        self._logprobs = form.logprobs
        self._offsets = [len(prompt) for prompt in self._prompts]
        self._text = self._envelope + b'{"text":'
        self._close = b',"finish_reason":null}' + self._end
        self._finish = b'"}' + self._end

    def _write_delta(self, event: Delta, pieces: list[bytes]) -> None:
        choice = event.choice
        if self._course.advance(choice):
            self._begin(choice, pieces)
        text = _text_of(event)
        if self._logprobs and event.logprobs:
            logprobs = _columns(event.logprobs, self._offsets[choice])
            self._offsets[choice] += sum(map(len, logprobs.tokens))
            self._write(choice, text, _encode(logprobs), pieces)
        elif text:
            self._write(choice, text, b"null", pieces)

    def _begin(self, choice: int, pieces: list[bytes]) -> None:
        if self._echo:
            self._write(choice, self._prompts[choice], b"null", pieces)

    def _write(self, choice: int, text: str, logprobs: bytes, pieces: list[bytes]) -> None:
        index = b',"index":%d,"logprobs":' % choice
        pieces += (self._text, _encode(text), index, logprobs, self._close)

    def _write_finish(self, event: Finish, pieces: list[bytes]) -> None:
        choice = event.choice
        if self._course.finish(event):
            self._begin(choice, pieces)
        last = b'"","index":%d,"logprobs":null,"finish_reason":"' % choice
        pieces += (self._text, last, event.reason.encode(), self._finish)


class TextCompletionBuilder(WholeWriter):
    """Gathers an answer and writes it as one object once its usage has come."""

    __slots__ = ("_form",)

    def __init__(self, identity: Identity, form: Form) -> None:
        super().__init__(identity, n=len(form.prompts) * form.n, logprobs=form.logprobs)
        self._form = form

    def _take(self, event: Delta) -> None:
        draft = self._drafts[event.choice]
        draft.text.append(_text_of(event))
        draft.logprobs += event.logprobs

    def _json(self, usage: Usage) -> bytes:
        choices = b",".join(
            self._choice(index, prompt) for index, prompt in enumerate(self._form.by_choice)
        )
        start = head(self._identity, _KIND)
        return start + b',"choices":[%b],"usage":%b}' % (choices, _encode(usage_of(usage)))

    def _choice(self, index: int, prompt: str) -> bytes:
        draft = self._drafts[index]
        text = "".join([prompt, *draft.text] if self._form.echo else draft.text)
        shown = self._logprobs and draft.logprobs
        logprobs = _encode(_columns(draft.logprobs, len(prompt))) if shown else b"null"
        return b'{"text":%b,"index":%d,"logprobs":%b,"finish_reason":"%b"}' % (
            _encode(text),
            index,
            logprobs,
            draft.reason.encode(),
        )


def _text_of(event: Delta) -> str:
    if event.tool_calls or event.reasoning:
        raise OutOfOrder("tool calls or thoughts in a bare text")
    return event.text


def _columns(tokens: Sequence[TokenLogprob], offset: int) -> TextLogprobs:
    """``offset``: characters before the first of ``tokens``."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[max(LOWEST_LOGPROB, token.logprob) for token in tokens],
        top_logprobs=[_top(token) for token in tokens],
        text_offset=offsets,
    )


def _top(token: TokenLogprob) -> dict[str, float]:
    """Of tokens that read alike (halves of a character, say) the most probable one stays."""
    found = {token.token: max(LOWEST_LOGPROB, token.logprob)}
    for one in token.top:
        logprob = max(LOWEST_LOGPROB, one.logprob)
        found[one.token] = max(logprob, found.get(one.token, logprob))
    return found
